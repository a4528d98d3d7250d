/* The head of a plain HTTP/1.1 request: `POST /` with a body of a known length, on a connection that stays.
 *
 * Whatever has more than one meaning, or is seldom, is left to Python: another request line, folded lines,
 * characters out of the ordinary, a repeated length, and every header that changes how a body is read or an
 * answer is sent. */

#ifndef FAASMOE_REQUEST_HEAD_H
#define FAASMOE_REQUEST_HEAD_H

#include <ctype.h>
#include <strings.h>

#include "text.h"

struct request_head {
    int64_t nbytes;      /* of the head, with the empty line at its end */
    int64_t body_nbytes; /* that follow */
    struct span proof;   /* of the caller; empty if it sends none */
};

static inline int is_name(struct span name, const char *word) {
    return name.length == (int64_t)strlen(word) && strncasecmp(name.start, word, (size_t)name.length) == 0;
}

static inline int is_token(char c) {
    return isalnum((unsigned char)c) || (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

/* Takes the line "name: value\r\n". */
static inline int text_header(struct text *text, struct span *name, struct span *value) {
    name->start = text->at;
    while (text->at < text->end && is_token(*text->at)) text->at++;
    name->length = text->at - name->start;
    if (name->length == 0 || !text_takes(text, ":")) return 0;
    while (text_takes(text, " ")) continue;
    value->start = text->at;
    while (text->at < text->end && *text->at >= ' ' && *text->at <= '~') text->at++;
    value->length = text->at - value->start;
    return text_takes(text, "\r\n");
}

/* Headers that change how the rest is read or answered. A call that a gateway forwards shares its connection
 * with those of other callers: each of them needs a report of its own. */
static inline int is_special(struct span name) {
    static const char *const names[] = {"transfer-encoding", "expect",  "upgrade", "proxy-connection",
                                        "keep-alive",        "trailer", "te",      "content-encoding",
                                        "x-forwarded-for"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (is_name(name, names[i])) return 1;
    return 0;
}

static inline int take_length(struct span value, int64_t *length) {
    struct text text = {value.start, value.start + value.length};
    return *length < 0 && text_number(&text, length) && text.at == text.end;
}

/* Returns 1 if the bytes begin with a whole plain head, 0 otherwise. */
static inline int parse_request_head(const char *bytes, int64_t count, struct request_head *head) {
    struct text text = {bytes, bytes + count};
    struct span name, value;
    *head = (struct request_head){.body_nbytes = -1};
    if (!text_takes(&text, "POST / HTTP/1.1\r\n")) return 0;
    while (!text_takes(&text, "\r\n")) {
        if (!text_header(&text, &name, &value) || is_special(name)) return 0;
        if (is_name(name, "content-length")) {
            if (!take_length(value, &head->body_nbytes)) return 0;
        } else if (is_name(name, "x-faasmoe-caller")) {
            if (head->proof.start) return 0;
            head->proof = value;
        } else if (is_name(name, "connection") && !is_name(value, "keep-alive")) {
            return 0;
        }
    }
    head->nbytes = text.at - bytes;
    return head->body_nbytes >= 0;
}

#endif
