/* Groups the rows of a batch by the functions that have their experts, and adds up the functions' outputs.
 *
 * row_groups.py has the same in NumPy, which gives the same bits. */

#ifndef FAASMOE_ROW_GROUPS_H
#define FAASMOE_ROW_GROUPS_H

#include <stdint.h>
#include <string.h>

struct batch {
    int64_t rows, top_k, row_nbytes, experts;
    const int32_t *owner; /* [experts]: the function of each expert */
    const int16_t *index; /* [rows][top_k]; -1 for no expert */
    const float *weights; /* [rows][top_k] */
    const char *hidden;   /* [rows][row_nbytes] */
};

/* Where the rows of all groups go, one group after the other. There are rows * top_k places at most. */
struct groups {
    int64_t *rows;  /* the rows' numbers */
    int16_t *index; /* their experts; -1 for none, or one of another function */
    float *weights;
    char *hidden;
};

/* Whether each of the batch's experts is the layer's, and has a function. */
static int is_routable(const struct batch *batch) {
    for (int64_t i = 0; i < batch->rows * batch->top_k; i++) {
        const int16_t expert = batch->index[i];
        if (expert == -1) continue;
        if (expert < 0 || expert >= batch->experts || batch->owner[expert] < 0) return 0;
    }
    return 1;
}

/* The function of an expert; -1 for no expert. */
static int32_t owner_of(const struct batch *batch, int16_t expert) {
    return expert < 0 ? -1 : batch->owner[expert];
}

/* Writes the numbers of the functions that are needed, ascending; returns how many. There is room for as many
 * as there are experts. */
static int64_t needed_functions(const struct batch *batch, int32_t *numbers) {
    int64_t count = 0;
    for (int64_t i = 0; i < batch->rows * batch->top_k; i++) {
        const int32_t number = owner_of(batch, batch->index[i]);
        if (number < 0) continue;
        int64_t place = count;
        while (place > 0 && numbers[place - 1] > number) place--;
        if (place > 0 && numbers[place - 1] == number) continue;
        memmove(&numbers[place + 1], &numbers[place], (size_t)(count - place) * sizeof *numbers);
        numbers[place] = number;
        count++;
    }
    return count;
}

static int needs(const struct batch *batch, int64_t row, int32_t number) {
    for (int64_t k = 0; k < batch->top_k; k++)
        if (owner_of(batch, batch->index[row * batch->top_k + k]) == number) return 1;
    return 0;
}

/* Writes the group of function `number` from place `start` on; returns the place after its last row. */
static int64_t write_group(const struct batch *batch, int32_t number, const struct groups *groups,
                           int64_t start) {
    const int64_t top_k = batch->top_k;
    int64_t end = start;
    for (int64_t row = 0; row < batch->rows; row++) {
        if (!needs(batch, row, number)) continue;
        for (int64_t k = 0; k < top_k; k++) {
            const int16_t expert = batch->index[row * top_k + k];
            groups->index[end * top_k + k] = owner_of(batch, expert) == number ? expert : -1;
        }
        groups->rows[end++] = row;
    }
    if (end - start == batch->rows) return end; /* A group of all rows needs no copies. */
    for (int64_t place = start; place < end; place++) {
        const int64_t row = groups->rows[place];
        memcpy(groups->weights + place * top_k, batch->weights + row * top_k, (size_t)top_k * sizeof(float));
        memcpy(groups->hidden + place * batch->row_nbytes, batch->hidden + row * batch->row_nbytes,
               (size_t)batch->row_nbytes);
    }
    return end;
}

/* One function's output. */
struct part {
    int64_t count;
    const int64_t *rows; /* [count]: where they belong; NULL for all rows in order */
    const void *output;  /* [count][size], float or bf16 */
};

static inline float widened(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* The nearest bf16, ties to even. NaN stays NaN. */
static inline uint16_t narrowed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* Adds a part to total [rows][size]. */
static void add_part(float *total, int64_t size, const struct part *part, int is_bf16) {
    for (int64_t i = 0; i < part->count; i++) {
        float *sum = total + (part->rows ? part->rows[i] : i) * size;
        if (is_bf16) {
            const uint16_t *output = (const uint16_t *)part->output + i * size;
            for (int64_t j = 0; j < size; j++) sum[j] += widened(output[j]);
        } else {
            const float *output = (const float *)part->output + i * size;
            for (int64_t j = 0; j < size; j++) sum[j] += output[j];
        }
    }
}

static void narrow(const float *values, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = narrowed(values[i]);
}

#endif
