/* A reader of bounded text, which never reads past its end. */

#ifndef FAASMOE_TEXT_H
#define FAASMOE_TEXT_H

#include <stdint.h>
#include <string.h>

#define MAX_DIGITS 9 /* of a number: their products of two fit an int64_t */

struct text {
    const char *at, *end;
};

struct span {
    const char *start;
    int64_t length;
};

static inline int span_is(struct span span, const char *word) {
    return span.length == (int64_t)strlen(word) && memcmp(span.start, word, (size_t)span.length) == 0;
}

/* Each of these returns 1 and moves on if the text goes on so, 0 otherwise. */

static inline int text_takes(struct text *text, const char *word) {
    const size_t length = strlen(word);
    if ((size_t)(text->end - text->at) < length || memcmp(text->at, word, length)) return 0;
    text->at += length;
    return 1;
}

/* A decimal number of 1 to MAX_DIGITS digits. */
static inline int text_number(struct text *text, int64_t *number) {
    int digits = 0;
    *number = 0;
    for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
        if (++digits > MAX_DIGITS) return 0;
        *number = *number * 10 + (*text->at - '0');
    }
    return digits > 0;
}

/* A JSON number, which has no zeros in front. */
static inline int text_json_number(struct text *text, int64_t *number) {
    const char *start = text->at;
    return text_number(text, number) && (*start != '0' || text->at - start == 1);
}

/* A JSON string of printable ASCII without escapes. */
static inline int text_string(struct text *text, struct span *span) {
    if (!text_takes(text, "\"")) return 0;
    span->start = text->at;
    for (; text->at < text->end; text->at++) {
        if (*text->at == '"') {
            span->length = text->at++ - span->start;
            return 1;
        }
        if (*text->at < ' ' || *text->at > '~' || *text->at == '\\') return 0;
    }
    return 0;
}

#endif
