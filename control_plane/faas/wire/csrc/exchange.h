/* Sends requests and receives answers on many sockets at once. None of the functions knows of Python. */

#ifndef FAASMOE_EXCHANGE_H
#define FAASMOE_EXCHANGE_H

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "plain_answer.h"

#define MAX_PARTS 8

struct request {
    int socket;
    int parts;
    struct iovec part[MAX_PARTS];
    ssize_t
        left; /* bytes to be sent; -1: the peer has closed the connection, or sent what nobody asked for */
};

/* Sends as much of each request as the network takes now. A socket that fails shows it again when the rest is
 * sent, so that the failure is not told here. */
static void send_requests(struct request *requests, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct request *r = &requests[i];
        char byte;
        ssize_t unasked = recv(r->socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (unasked >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
            r->left = -1;
            continue;
        }
        struct msghdr message = {.msg_iov = r->part, .msg_iovlen = (size_t)r->parts};
        const ssize_t sent = sendmsg(r->socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) r->left -= sent;
    }
}

enum progress { WAITING, ANSWERED, LEFT_TO_PYTHON };

struct reception {
    int socket;
    enum progress progress;
    struct expected expected;
    struct plain_answer answer;
    size_t received;   /* bytes in `head` */
    size_t output_got; /* bytes of the output that are in their place; the first ones came with the head */
    int has_head;
    char head[HEAD_BYTES];
};

/* Looks at what is in `head`; the part of the output that came with it goes to its place. */
static void take_head(struct reception *r) {
    enum verdict verdict = read_plain(r->head, r->received, &r->expected, &r->answer);
    size_t start = r->answer.output_start;
    if (verdict == SPECIAL || (verdict == SHORT && r->received == HEAD_BYTES) ||
        (verdict == PLAIN && r->received - start > r->expected.nbytes)) {
        r->progress = LEFT_TO_PYTHON;
    } else if (verdict == PLAIN) {
        r->has_head = 1;
        r->output_got = r->received - start;
        memcpy(r->expected.output, r->head + start, r->output_got);
    }
}

/* Takes what has arrived. The end of a connection is left to Python, which meets it again. */
static void take_arrived(struct reception *r) {
    while (r->progress == WAITING) {
        char *place = r->has_head ? r->expected.output + r->output_got : r->head + r->received;
        size_t room = r->has_head ? r->expected.nbytes - r->output_got : HEAD_BYTES - r->received;
        ssize_t got = recv(r->socket, place, room, MSG_DONTWAIT);
        if (got <= 0) {
            if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
                r->progress = LEFT_TO_PYTHON;
            return;
        }
        if (r->has_head) {
            r->output_got += (size_t)got;
        } else {
            r->received += (size_t)got;
            take_head(r);
        }
        if (r->has_head && r->output_got == r->expected.nbytes) r->progress = ANSWERED;
    }
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Waits for those that have not been answered, up to `deadline`. Returns how many there are, or 0 when the
 * wait is over: when none is left, one is not plain, or time is up and nothing more has arrived. `polled` and
 * `which` have room for all. */
static size_t wait_for_some(struct reception *receptions, size_t count, int64_t deadline,
                            struct pollfd *polled, size_t *which) {
    size_t waiting = 0;
    for (size_t i = 0; i < count; i++) {
        if (receptions[i].progress == LEFT_TO_PYTHON) return 0;
        if (receptions[i].progress == ANSWERED) continue;
        polled[waiting] = (struct pollfd){.fd = receptions[i].socket, .events = POLLIN};
        which[waiting++] = i;
    }
    if (waiting == 0) return 0;
    int64_t wait = deadline - now_ns();
    /* The caller may have done other work until after the deadline. */
    if (wait < 0) wait = 0;
    struct timespec time = {wait / 1000000000, wait % 1000000000};
    int ready = ppoll(polled, waiting, &time, NULL);
    /* Interrupted by a signal: nothing has been received, and the next round waits again. */
    if (ready < 0)
        for (size_t i = 0; i < waiting; i++) polled[i].revents = 0;
    return ready == 0 || (ready < 0 && errno != EINTR) ? 0 : waiting;
}

/* Receives until all are answered, one answer is not plain, or the time is up. Whatever is not answered then
 * is left to Python, with the bytes that have arrived. */
static void receive_answers(struct reception *receptions, size_t count, int64_t deadline,
                            struct pollfd *polled, size_t *which) {
    size_t waiting;
    while ((waiting = wait_for_some(receptions, count, deadline, polled, which)) > 0)
        for (size_t i = 0; i < waiting; i++)
            if (polled[i].revents) take_arrived(&receptions[which[i]]);
}

#endif
