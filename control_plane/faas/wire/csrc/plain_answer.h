/* Reads a function's answer in the one form that functions write it in when nothing is special about it.
 *
 * An answer in any other form is no error: it is left to Python, which reads all of HTTP/1.1 and safetensors.
 * What is accepted here means the same there; the fuzzer compares the two. Nothing here allocates, waits or
 * knows of Python. */

#ifndef FAASMOE_PLAIN_ANSWER_H
#define FAASMOE_PLAIN_ANSWER_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define HEAD_BYTES 8192 /* for what precedes the output, and for the whole of a small answer */
#define MAX_NAME 64     /* the most characters of a name of a process, and of an address */

#define HTTP_START "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.safetensors\r\nContent-Length: "
#define PROOF_START "X-FaaSMoE-Function: "
#define HTTP_END "Connection: keep-alive\r\n\r\n"
#define METADATA_START "{\"__metadata__\":{\"instance\":\""
#define OUTPUT_FORM "\"},\"output\":{\"dtype\":\"%s\",\"shape\":[%lld,%lld],\"data_offsets\":[0,%lld]}}"

enum verdict {
    PLAIN,  /* in this form, as far as it was read */
    SHORT,  /* in this form until the end of the bytes that are there */
    SPECIAL /* in another form */
};

struct text {
    const char *start;
    size_t length;
};

/* What is known of the answer before it comes. */
struct expected {
    struct text proof; /* what the function has to send; empty if it has no secret */
    char *output;      /* its place */
    size_t nbytes;
    char output_form[128]; /* the end of the safetensors header */
};

struct plain_answer {
    struct text instance, address;
    double seconds;
    long cold_experts;
    size_t body_nbytes;
    size_t output_start; /* where in the answer's bytes the output begins */
};

/* Returns 0, or -1 for an output that no answer of this form has. */
static int expect(struct expected *expected, const char *dtype, long long rows, long long size) {
    int length = snprintf(expected->output_form, sizeof expected->output_form, OUTPUT_FORM, dtype, rows, size,
                          (long long)expected->nbytes);
    return length > 0 && (size_t)length < sizeof expected->output_form ? 0 : -1;
}

struct cursor {
    const char *at, *end;
    enum verdict verdict; /* once it is not PLAIN, nothing more is read */
};

static size_t left(const struct cursor *c) { return (size_t)(c->end - c->at); }

static void literal(struct cursor *c, const char *text, size_t length) {
    if (c->verdict != PLAIN) return;
    size_t compared = length < left(c) ? length : left(c);
    if (memcmp(c->at, text, compared) != 0)
        c->verdict = SPECIAL;
    else if (compared < length)
        c->verdict = SHORT;
    else
        c->at += length;
}

#define LITERAL(cursor, text) literal(cursor, text, sizeof(text) - 1)

/* A text that is to be kept secret: how long this takes says nothing about how much of it is right. */
static void secret(struct cursor *c, struct text text) {
    if (c->verdict != PLAIN) return;
    if (left(c) < text.length) {
        c->verdict = SHORT;
        return;
    }
    volatile unsigned char difference = 0;
    for (size_t i = 0; i < text.length; i++) difference |= (unsigned char)(c->at[i] ^ text.start[i]);
    if (difference)
        c->verdict = SPECIAL;
    else
        c->at += text.length;
}

/* A number of `least` to `most` digits, and the digits' number; something else has to follow it. */
static int64_t digits(struct cursor *c, int least, int most) {
    int64_t value = 0;
    int count = 0;
    if (c->verdict != PLAIN) return 0;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9' && count <= most; c->at++, count++)
        value = 10 * value + (*c->at - '0');
    if (count > most || (c->at < c->end && count < least))
        c->verdict = SPECIAL;
    else if (c->at == c->end)
        c->verdict = SHORT;
    return value;
}

/* Characters that mean themselves in JSON, up to a quotation mark. */
static struct text quoted(struct cursor *c) {
    struct text text = {c->at, 0};
    if (c->verdict != PLAIN) return text;
    for (; c->at < c->end && *c->at != '"'; c->at++)
        if (*c->at < ' ' || *c->at > '~' || *c->at == '\\' || c->at - text.start >= MAX_NAME) {
            c->verdict = SPECIAL;
            return text;
        }
    if (c->at == c->end) c->verdict = SHORT;
    text.length = (size_t)(c->at - text.start);
    return text;
}

/* Eight bytes, the least significant first. */
static uint64_t fixed64(struct cursor *c) {
    uint64_t value = 0;
    if (c->verdict != PLAIN) return 0;
    if (left(c) < 8) {
        c->verdict = SHORT;
        return 0;
    }
    for (int i = 7; i >= 0; i--) value = value << 8 | (unsigned char)c->at[i];
    c->at += 8;
    return value;
}

/* The spaces that make the header as long as it claims. Functions write up to seven. */
static void padding(struct cursor *c, const char *start, uint64_t length) {
    if (c->verdict != PLAIN) return;
    uint64_t used = (uint64_t)(c->at - start);
    if (length < used || length - used > 7)
        c->verdict = SPECIAL;
    else
        literal(c, "       ", (size_t)(length - used));
}

static void read_http(struct cursor *c, const struct expected *expected, struct plain_answer *answer) {
    LITERAL(c, HTTP_START);
    answer->body_nbytes = (size_t)digits(c, 1, 12);
    LITERAL(c, "\r\n");
    if (expected->proof.length) {
        LITERAL(c, PROOF_START);
        secret(c, expected->proof);
        LITERAL(c, "\r\n");
    }
    LITERAL(c, HTTP_END);
}

static void read_metadata(struct cursor *c, struct plain_answer *answer) {
    LITERAL(c, METADATA_START);
    answer->instance = quoted(c);
    LITERAL(c, "\",\"address\":\"");
    answer->address = quoted(c);
    LITERAL(c, "\",\"seconds\":\"");
    int64_t whole = digits(c, 1, 6);
    LITERAL(c, ".");
    int64_t micro = digits(c, 6, 6);
    /* Both are exact, so that the quotient is the double that is nearest to the text. */
    answer->seconds = (double)(whole * 1000000 + micro) / 1e6;
    LITERAL(c, "\",\"cold_experts\":\"");
    answer->cold_experts = (long)digits(c, 1, 9);
}

/* Reads all that precedes the output, from the first `length` bytes of an answer. The texts in `answer` are
 * parts of these. */
static enum verdict read_plain(const char *bytes, size_t length, const struct expected *expected,
                               struct plain_answer *answer) {
    struct cursor c = {bytes, bytes + length, PLAIN};
    read_http(&c, expected, answer);
    uint64_t header_nbytes = fixed64(&c);
    const char *header = c.at;
    read_metadata(&c, answer);
    literal(&c, expected->output_form, strlen(expected->output_form));
    padding(&c, header, header_nbytes);
    if (c.verdict == PLAIN && answer->body_nbytes != 8 + header_nbytes + expected->nbytes) return SPECIAL;
    answer->output_start = (size_t)(c.at - bytes);
    return c.verdict;
}

#endif
