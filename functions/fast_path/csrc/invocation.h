/* The body of a plain invocation (functions/contract/messages.py) as its encoder writes it: the metadata
 * "layer", "model" and "wire", and the three tensors, in a header without spaces between its parts. Whatever
 * has more or other parts is left to Python. */

#ifndef FAASMOE_INVOCATION_H
#define FAASMOE_INVOCATION_H

#include "text.h"

#define PREFIX_BYTES 8 /* the header's length */
#define MAX_HEADER_BYTES 65536
#define WIRE_VERSION "1"

enum tensor_name { HIDDEN, INDEX, WEIGHT, TENSORS };

struct tensor {
    struct span dtype;
    int64_t rows, columns, start, end;
};

struct invocation {
    int64_t layer, rows, top_k, hidden_size;
    struct span model, dtype;
    const void *hidden_states;   /* [rows][hidden_size] */
    const int16_t *expert_index; /* [rows][top_k] */
    const float *expert_weight;  /* [rows][top_k] */
};

/* Takes {"layer":"0","model":"...","wire":"1"} in any order. */
static inline int text_metadata(struct text *text, struct invocation *call) {
    struct span name, value, wire = {0};
    call->layer = -1;
    if (!text_takes(text, "{")) return 0;
    for (int i = 0; i < 3; i++) {
        if ((i && !text_takes(text, ",")) || !text_string(text, &name) || !text_takes(text, ":") ||
            !text_string(text, &value))
            return 0;
        if (span_is(name, "layer") && call->layer < 0) {
            struct text number = {value.start, value.start + value.length};
            if (!text_number(&number, &call->layer) || number.at != number.end) return 0;
        } else if (span_is(name, "model") && !call->model.start) {
            call->model = value;
        } else if (span_is(name, "wire") && !wire.start) {
            wire = value;
        } else {
            return 0;
        }
    }
    return text_takes(text, "}") && span_is(wire, WIRE_VERSION);
}

/* Takes {"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}. */
static inline int text_tensor(struct text *text, struct tensor *tensor) {
    return text_takes(text, "{\"dtype\":") && text_string(text, &tensor->dtype) &&
           text_takes(text, ",\"shape\":[") && text_json_number(text, &tensor->rows) &&
           text_takes(text, ",") && text_json_number(text, &tensor->columns) &&
           text_takes(text, "],\"data_offsets\":[") && text_json_number(text, &tensor->start) &&
           text_takes(text, ",") && text_json_number(text, &tensor->end) && text_takes(text, "]}");
}

static inline int text_invocation(struct text *text, struct invocation *call, struct tensor *tensors) {
    static const char *const names[TENSORS] = {"hidden_states", "expert_index", "expert_weight"};
    int metadata = 0;
    if (!text_takes(text, "{")) return 0;
    for (int i = 0; i <= TENSORS; i++) {
        struct span name;
        if ((i && !text_takes(text, ",")) || !text_string(text, &name) || !text_takes(text, ":")) return 0;
        int t = 0;
        while (t < TENSORS && !span_is(name, names[t])) t++;
        if (t < TENSORS) {
            if (tensors[t].dtype.start || !text_tensor(text, &tensors[t])) return 0;
        } else if (metadata++ || !span_is(name, "__metadata__") || !text_metadata(text, call)) {
            return 0;
        }
    }
    if (!text_takes(text, "}")) return 0;
    while (text_takes(text, " ")) continue;
    return text->at == text->end;
}

/* Whether the tensors, which all have bytes, follow each other without a gap until `nbytes`. */
static inline int tensors_fill(const struct tensor *tensors, int64_t nbytes) {
    int64_t position = 0;
    for (int i = 0; i < TENSORS; i++) {
        int t = 0;
        while (t < TENSORS && tensors[t].start != position) t++;
        if (t == TENSORS || tensors[t].end <= position) return 0;
        position = tensors[t].end;
    }
    return position == nbytes;
}

static inline int tensor_is(const struct tensor *tensor, const char *dtype, int64_t size) {
    return span_is(tensor->dtype, dtype) && tensor->start % size == 0 &&
           tensor->end - tensor->start == tensor->rows * tensor->columns * size;
}

/* Returns 1 for a plain invocation whose hidden states are of `dtype`, with values of `size` bytes; 0
 * otherwise. The body must be aligned to 8 bytes; `call` points into it. */
static inline int parse_invocation(const uint8_t *body, int64_t nbytes, const char *dtype, int64_t size,
                                   struct invocation *call) {
    struct tensor t[TENSORS] = {0};
    uint64_t length;
    *call = (struct invocation){0};
    if (nbytes < PREFIX_BYTES) return 0;
    memcpy(&length, body, sizeof length);
    if (length > MAX_HEADER_BYTES || (int64_t)length > nbytes - PREFIX_BYTES || length % 8) return 0;
    const uint8_t *data = body + PREFIX_BYTES + length;
    struct text text = {(const char *)body + PREFIX_BYTES, (const char *)data};
    if (!text_invocation(&text, call, t) || !tensors_fill(t, nbytes - PREFIX_BYTES - (int64_t)length) ||
        !tensor_is(&t[HIDDEN], dtype, size) || !tensor_is(&t[INDEX], "I16", 2) ||
        !tensor_is(&t[WEIGHT], "F32", 4))
        return 0;
    if (t[INDEX].rows != t[HIDDEN].rows || t[WEIGHT].rows != t[HIDDEN].rows ||
        t[INDEX].columns != t[WEIGHT].columns)
        return 0;
    call->rows = t[HIDDEN].rows;
    call->top_k = t[INDEX].columns;
    call->hidden_size = t[HIDDEN].columns;
    call->hidden_states = data + t[HIDDEN].start;
    call->expert_index = (const int16_t *)(data + t[INDEX].start);
    call->expert_weight = (const float *)(data + t[WEIGHT].start);
    return 1;
}

#endif
