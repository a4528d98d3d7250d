/* One call of the gated FFN without Python, for a machine that is emulated.
 *
 * gated_ffn_call           prints the instruction sets that the machine runs, best first, one a line
 * gated_ffn_call ISA       reads a call from standard input, and writes its output to standard output
 *
 * emulation.py writes the call: `struct call`, then the buffers in the order in which main() reads them. */

#include <stdio.h>

#include "gated_ffn.h"

struct call {
    int64_t gate_up_dtype, down_dtype, hidden_dtype, out_dtype;
    int64_t rows, top_k, hidden_size, intermediate_size, threads;
    int64_t block_nbytes, experts, carries;
    int64_t has_bias, function, gated;
    double limit, alpha, up_offset;
};

/* A buffer of exactly this size, so that a memory checker sees what is read beyond it. */
static void *read_buffer(int64_t nbytes) {
    void *buffer = malloc((size_t)nbytes + (nbytes == 0));
    if (!buffer || fread(buffer, 1, (size_t)nbytes, stdin) != (size_t)nbytes) exit(2);
    return buffer;
}

static const struct isa *isa_named(const char *name) {
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (strcmp(ISAS[i].name, name) == 0 && ISAS[i].runs_here()) return &ISAS[i];
    exit(3);
}

static int run(const struct isa *isa) {
    const struct call *c = read_buffer(sizeof *c);
    const struct activation activation = {
        .function = (enum activation_function)c->function,
        .gated = (int)c->gated,
        .limit = (float)c->limit,
        .alpha = (float)c->alpha,
        .up_offset = (float)c->up_offset,
    };
    struct ffn_arguments a = {
        .isa = isa,
        .shape = shape_of((enum dtype)c->gate_up_dtype, (enum dtype)c->down_dtype, c->hidden_size,
                          c->intermediate_size, activation, (int)c->has_bias),
        .rows = c->rows,
        .top_k = c->top_k,
        .experts = c->experts,
        .hidden_dtype = (enum dtype)c->hidden_dtype,
        .out_dtype = (enum dtype)c->out_dtype,
        .threads = (int)c->threads,
    };
    const int64_t values = c->rows * c->hidden_size, out_nbytes = values * nbytes_of(a.out_dtype);
    a.block = read_buffer(c->block_nbytes);
    a.offsets = read_buffer(c->experts * 8);
    a.hidden_states = read_buffer(values * nbytes_of(a.hidden_dtype));
    a.expert_index = read_buffer(c->rows * c->top_k * 2);
    a.expert_weight = read_buffer(c->rows * c->top_k * 4);
    if (c->carries) a.carry = read_buffer(values * 4);
    a.out = malloc((size_t)out_nbytes + 1);
    if (!a.out || gated_ffn(&a)) return 4;
    return fwrite(a.out, 1, (size_t)out_nbytes, stdout) == (size_t)out_nbytes ? 0 : 5;
}

int main(int count, char **arguments) {
    pool_init();
    if (count == 2) return run(isa_named(arguments[1]));
    for (size_t i = 0; i < ISA_COUNT; i++)
        if (ISAS[i].runs_here()) puts(ISAS[i].name);
    return 0;
}
