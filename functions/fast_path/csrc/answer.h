/* The answer to a plain invocation: one buffer with the HTTP head, the safetensors header and the output. */

#ifndef FAASMOE_ANSWER_H
#define FAASMOE_ANSWER_H

#include <stdio.h>
#include <stdlib.h>

#include "invocation.h"
#include "server.h"

#define HEAD_BYTES 1024 /* of the HTTP head and the safetensors header, at most */

struct answer {
    uint8_t *memory;
    uint8_t *start; /* of what is sent */
    int64_t nbytes;
    uint8_t *output; /* aligned to 8 bytes */
    int64_t output_nbytes;
};

/* Returns 0, or -1 when out of memory. */
static int answer_alloc(struct answer *answer, int64_t output_nbytes) {
    answer->output_nbytes = output_nbytes;
    answer->memory = malloc((size_t)(HEAD_BYTES + output_nbytes));
    answer->output = answer->memory ? answer->memory + HEAD_BYTES : NULL;
    return answer->memory ? 0 : -1;
}

/* Writes the safetensors header; returns its length, a multiple of 8 bytes. */
static int write_header(char *header, const struct server *server, const struct invocation *call,
                        const char *address, int64_t nanoseconds, int64_t output_nbytes) {
    uint64_t length = (uint64_t)snprintf(
        header + PREFIX_BYTES, HEAD_BYTES - PREFIX_BYTES,
        "{\"__metadata__\":{\"instance\":\"%s\",\"address\":\"%s\",\"seconds\":\"%lld.%06lld\","
        "\"cold_experts\":\"0\"},\"output\":{\"dtype\":\"%.*s\",\"shape\":[%lld,%lld],"
        "\"data_offsets\":[0,%lld]}}",
        server->instance, address, (long long)(nanoseconds / 1000000000),
        (long long)(nanoseconds % 1000000000 / 1000), (int)call->dtype.length, call->dtype.start,
        (long long)call->rows, (long long)call->hidden_size, (long long)output_nbytes);
    while (length % 8) header[PREFIX_BYTES + length++] = ' ';
    memcpy(header, &length, PREFIX_BYTES);
    return (int)length + PREFIX_BYTES;
}

/* Writes what precedes the output. The names, the address and the proof are bounded so that it fits. */
static void answer_begin(struct answer *answer, const struct server *server, const struct invocation *call,
                         const char *address, const char *proof, int64_t nanoseconds, int keeps_alive) {
    char head[HEAD_BYTES], header[HEAD_BYTES];
    const int header_nbytes = write_header(header, server, call, address, nanoseconds, answer->output_nbytes);
    const int head_nbytes =
        snprintf(head, sizeof head,
                 "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.safetensors\r\nContent-Length: %lld\r\n"
                 "%s%s%sConnection: %s\r\n\r\n",
                 (long long)(header_nbytes + answer->output_nbytes), *proof ? "X-FaaSMoE-Function: " : "",
                 proof, *proof ? "\r\n" : "", keeps_alive ? "keep-alive" : "close");
    answer->start = answer->output - header_nbytes - head_nbytes;
    memcpy(answer->start, head, (size_t)head_nbytes);
    memcpy(answer->start + head_nbytes, header, (size_t)header_nbytes);
    answer->nbytes = head_nbytes + header_nbytes + answer->output_nbytes;
}

#endif
