/* State that Python and C share. shared.py declares the same fields in the same order, and says what they
 * mean. Each struct is guarded by the condition (condition.h) of the Python object that owns it. */

#ifndef FAASMOE_SHARED_H
#define FAASMOE_SHARED_H

#include <stdint.h>

#define PROOF_BYTES 64 /* of a proof and the zeros after it */

enum phase { WAITING, COMPUTING, SENDING, LEAVING };

struct client_state {
    int64_t phase, since, nbytes;
    int64_t core;
    int64_t reported;
    double reported_at;
};

struct connections_state {
    int64_t turns, nbytes, most_nbytes, stopping;
};

struct function_state {
    int64_t invocations, rows;
    double seconds;
    int64_t cold_experts, refused, in_flight, max_in_flight;
    double used_at;
};

struct proofs_state {
    char caller[PROOF_BYTES], function[PROOF_BYTES];
};

struct residency_state {
    int64_t in_call, wanted, is_plain, version, held;
};

struct uses_state {
    int64_t calls, layer;
};

#endif
