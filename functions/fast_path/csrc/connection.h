/* One connection: receives a call, answers it if it is plain, and hands everything else over to Python with
 * the bytes that have arrived. */

#ifndef FAASMOE_CONNECTION_H
#define FAASMOE_CONNECTION_H

#include "answer.h"
#include "request_head.h"
#include "residency.h"
#include "socket.h"

#define FIRST_BYTES 16384 /* received at first: a head, and small bodies */

struct connection {
    struct server *server;
    int fd;
    struct client_state *client;
    const char *address; /* at which the client reached this function */
    int leaves_client_core;
    double idle_seconds, receive_seconds, send_seconds;
    uint8_t first[FIRST_BYTES];
    int64_t first_nbytes; /* received; only those of the head once the body has memory of its own */
    struct request_head head;
    uint8_t *body;
    int64_t body_nbytes; /* received */
};

enum outcome { ANSWERED, HANDED_OVER, CLOSED };

/* A call that is ready to be computed. */
struct call {
    struct invocation invocation;
    struct called_experts called;
    int64_t *memory;  /* of the arrays */
    int64_t *offsets; /* [experts of a layer] */
    struct answer answer;
    char proof[PROOF_BYTES]; /* of the function */
    int keeps_alive;         /* whether the connection stays open after the answer */
};

static void call_free(struct call *call) {
    free(call->memory);
    free(call->answer.memory);
}

/* Keeps this thread off the core that its client sends from (functions/host/threads.py says why). */
static void leave_client_core(struct connection *c) {
#ifdef __linux__
    int core = -1;
    socklen_t size = sizeof core;
    if (!c->leaves_client_core || CPU_COUNT(&pool_cores) < 2 ||
        getsockopt(c->fd, SOL_SOCKET, SO_INCOMING_CPU, &core, &size) || core == c->client->core)
        return;
    c->client->core = core;
    cpu_set_t others = pool_cores;
    if (core >= 0 && core < CPU_SETSIZE) CPU_CLR(core, &others);
    sched_setaffinity(0, sizeof others, &others);
#else
    (void)c;
#endif
}

/* The rest of a body is to come: the connection has not waited as long as one that is silent. */
static void note_begun(struct connection *c) {
    GUARDED(c->server->connections_guard) {
        if (c->client->phase == WAITING) c->client->since = c->server->connections->turns++;
    }
}

/* Whether a body may take `nbytes` without another one giving way. */
static int hold(struct connection *c, int64_t nbytes) {
    struct connections_state *all = c->server->connections;
    int held = 0;
    GUARDED(c->server->connections_guard) {
        const int64_t grown = nbytes - c->client->nbytes;
        held = c->client->phase != LEAVING && all->nbytes + grown <= all->most_nbytes;
        if (held) {
            all->nbytes += grown;
            c->client->nbytes = nbytes;
        }
    }
    return held;
}

/* Receives the body of which a part has come with the head. */
static enum outcome receive_body(struct connection *c, int64_t deadline) {
    const int64_t nbytes = c->head.body_nbytes;
    const int64_t with_head = c->first_nbytes - c->head.nbytes;
    /* With bytes of the next call behind it, or too large: Python knows what to do. */
    if (with_head > nbytes || nbytes > c->server->max_body_nbytes) return HANDED_OVER;
    if (nbytes > FIRST_BYTES && !hold(c, nbytes)) return HANDED_OVER;
    c->body = malloc((size_t)nbytes + 1);
    if (!c->body) return HANDED_OVER;
    memcpy(c->body, c->first + c->head.nbytes, (size_t)with_head);
    c->body_nbytes = with_head;
    c->first_nbytes = c->head.nbytes;
    if (c->body_nbytes < nbytes) note_begun(c);
    while (c->body_nbytes < nbytes) {
        const int64_t count =
            socket_receive(c->fd, c->body + c->body_nbytes, nbytes - c->body_nbytes, deadline);
        if (count == 0) return CLOSED;
        leave_client_core(c);
        c->body_nbytes += count;
    }
    return ANSWERED;
}

static int is_caller(const struct server *server, struct span proof, char *function_proof) {
    struct proofs_state proofs;
    GUARDED(server->proofs_guard) { proofs = *server->proofs; }
    memcpy(function_proof, proofs.function, PROOF_BYTES);
    function_proof[PROOF_BYTES - 1] = 0;
    const int64_t length = (int64_t)strnlen(proofs.caller, PROOF_BYTES);
    if (length == 0) return 1;
    if (proof.length != length) return 0;
    /* In constant time: it must not show how much of the proof is right. */
    unsigned char difference = 0;
    for (int64_t i = 0; i < length; i++) difference |= (unsigned char)(proof.start[i] ^ proofs.caller[i]);
    return difference == 0;
}

/* Counts the rows of each expert of the layer. Returns 0 for an expert that the block does not have, for no
 * expert at all, and when out of memory. */
static int find_experts(const struct server *server, struct call *call) {
    const struct invocation *in = &call->invocation;
    const int64_t experts = server->experts;
    const int64_t *position_of = server->position_of + call->called.layer * experts;
    call->memory = calloc((size_t)(4 * experts), sizeof *call->memory);
    if (!call->memory) return 0;
    int64_t *rows_of = call->memory;
    call->offsets = call->memory + experts;
    call->called.position = call->memory + 2 * experts;
    call->called.rows_of = call->memory + 3 * experts;
    call->called.rows = in->rows;
    for (int64_t i = 0; i < in->rows * in->top_k; i++) {
        const int16_t expert = in->expert_index[i];
        if (expert < -1 || expert >= experts) return 0;
        if (expert >= 0) rows_of[expert]++;
    }
    for (int64_t e = 0; e < experts; e++) {
        if (rows_of[e] == 0) continue;
        if (position_of[e] < 0) return 0;
        call->called.position[call->called.count] = position_of[e];
        call->called.rows_of[call->called.count++] = rows_of[e];
    }
    return call->called.count > 0;
}

/* Reads and checks the call. Returns 1 if it is plain. */
static int read_call(const struct connection *c, struct call *call) {
    const struct server *server = c->server;
    struct invocation *in = &call->invocation;
    const char *dtype = server->hidden_dtype == BF16 ? "BF16" : "F32";
    if (!is_caller(server, c->head.proof, call->proof) ||
        !parse_invocation(c->body, c->body_nbytes, dtype, nbytes_of(server->hidden_dtype), in) ||
        !span_is(in->model, server->model) || in->hidden_size != server->shape.hidden_size ||
        in->top_k > server->top_k)
        return 0;
    in->dtype = (struct span){dtype, (int64_t)strlen(dtype)};
    while (call->called.layer < server->layers && server->layer_numbers[call->called.layer] != in->layer)
        call->called.layer++;
    return call->called.layer < server->layers && find_experts(server, call);
}

/* Has the kernel find each expert under its number. */
static void place_offsets(const struct server *server, struct call *call) {
    const int64_t *position_of = server->position_of + call->called.layer * server->experts;
    /* Both ascend; from the end, since offsets[i] of the i-th called expert moves to a higher place. */
    int64_t i = call->called.count - 1;
    for (int64_t e = server->experts - 1; e >= 0; e--) {
        const int is_called = i >= 0 && position_of[e] == call->called.position[i];
        call->offsets[e] = is_called ? call->offsets[i--] : -1;
    }
}

static int compute(const struct server *server, struct call *call) {
    const struct ffn_arguments arguments = {
        .isa = server->isa,
        .shape = server->shape,
        .rows = call->invocation.rows,
        .top_k = call->invocation.top_k,
        .experts = server->experts,
        .block = server->weights,
        .offsets = call->offsets,
        .hidden_dtype = server->hidden_dtype,
        .hidden_states = call->invocation.hidden_states,
        .expert_index = call->invocation.expert_index,
        .expert_weight = call->invocation.expert_weight,
        .out_dtype = server->hidden_dtype,
        .out = call->answer.output,
        .threads = server->threads,
    };
    return gated_ffn(&arguments);
}

/* Takes a place among the calls in flight; returns whether there was one. */
static int function_enter(const struct server *server) {
    struct function_state *function = server->function;
    int entered = 0;
    GUARDED(server->function_guard) {
        entered = function->in_flight < function->max_in_flight;
        if (entered) {
            function->in_flight++;
            function->used_at = monotonic();
        }
    }
    return entered;
}

/* `rows` is 0 for a call that Python has to answer. */
static void function_leave(const struct server *server, int64_t rows, int64_t nanoseconds) {
    struct function_state *function = server->function;
    GUARDED(server->function_guard) {
        function->in_flight--;
        function->invocations += rows > 0;
        function->rows += rows;
        function->seconds += rows > 0 ? (double)nanoseconds * 1e-9 : 0;
        function->used_at = monotonic();
    }
}

/* The call has arrived; returns whether the connection is still there for the answer. */
static int note_computing(struct connection *c) {
    int stays = 0;
    GUARDED(c->server->connections_guard) {
        stays = c->client->phase == WAITING;
        if (stays) c->client->phase = COMPUTING;
    }
    return stays;
}

/* The answer is there; returns whether the connection may stay open after it. */
static int note_sending(struct connection *c) {
    struct connections_state *all = c->server->connections;
    int stopping = 0;
    GUARDED(c->server->connections_guard) {
        c->client->phase = SENDING;
        c->client->since = all->turns++;
        stopping = all->stopping != 0;
    }
    return !stopping;
}

/* Python answers the call, which has a whole body. */
static void note_waiting(struct connection *c) {
    GUARDED(c->server->connections_guard) { c->client->phase = WAITING; }
}

/* The answer has been sent; returns whether the connection is still there. */
static int note_answered(struct connection *c) {
    struct connections_state *all = c->server->connections;
    int stays = 0;
    GUARDED(c->server->connections_guard) {
        stays = c->client->phase == SENDING;
        if (stays) {
            c->client->phase = WAITING;
            c->client->since = all->turns++;
            all->nbytes -= c->client->nbytes;
            c->client->nbytes = 0;
        }
        pthread_cond_broadcast(&c->server->connections_guard->changed);
    }
    return stays;
}

/* Computes a plain call whose experts are taken. Returns 1, or 0 when out of memory. */
static int compute_taken(struct connection *c, struct call *call) {
    place_offsets(c->server, call);
    const int64_t began = now_ns();
    const int failed = compute(c->server, call);
    const int64_t nanoseconds = now_ns() - began;
    residency_finish(&c->server->residency, &call->called);
    function_leave(c->server, failed ? 0 : call->invocation.rows, nanoseconds);
    if (failed) {
        note_waiting(c);
        return 0;
    }
    call->keeps_alive = note_sending(c);
    answer_begin(&call->answer, c->server, &call->invocation, c->address, call->proof, nanoseconds,
                 call->keeps_alive);
    return 1;
}

static enum outcome answer_call(struct connection *c, struct call *call) {
    const struct server *server = c->server;
    const int64_t values = call->invocation.rows * call->invocation.hidden_size;
    if (answer_alloc(&call->answer, values * nbytes_of(server->hidden_dtype)) || !function_enter(server))
        return HANDED_OVER;
    if (!note_computing(c)) {
        function_leave(server, 0, 0);
        return CLOSED;
    }
    if (!residency_begin(server, c->client, &call->called, call->offsets)) {
        function_leave(server, 0, 0);
        note_waiting(c);
        return HANDED_OVER;
    }
    if (!compute_taken(c, call)) return HANDED_OVER;
    const int64_t deadline = deadline_in(c->send_seconds);
    if (!socket_send(c->fd, call->answer.start, call->answer.nbytes, deadline)) return CLOSED;
    return note_answered(c) && call->keeps_alive ? ANSWERED : CLOSED;
}

static enum outcome serve_one(struct connection *c) {
    c->first_nbytes = socket_receive(c->fd, c->first, FIRST_BYTES, deadline_in(c->idle_seconds));
    if (c->first_nbytes == 0) return CLOSED;
    leave_client_core(c);
    const int64_t deadline = deadline_in(c->receive_seconds);
    if (!parse_request_head((const char *)c->first, c->first_nbytes, &c->head)) return HANDED_OVER;
    enum outcome outcome = receive_body(c, deadline);
    if (outcome != ANSWERED) return outcome;
    struct call call = {0};
    outcome = read_call(c, &call) ? answer_call(c, &call) : HANDED_OVER;
    call_free(&call);
    return outcome;
}

/* Answers call after call. Returns HANDED_OVER with the bytes of a call for Python, first and then body, or
 * CLOSED. The caller frees the body. */
static enum outcome serve(struct connection *c) {
    for (;;) {
        const enum outcome outcome = serve_one(c);
        if (outcome != ANSWERED) return outcome;
        free(c->body);
        c->body = NULL;
        c->body_nbytes = 0;
    }
}

#endif
