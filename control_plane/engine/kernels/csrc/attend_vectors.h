/* The part of attend.h that computes with vectors of LANES floats, for which it is included once each. It
 * defines attend_all_LANES. */

#define ATTEND(name) ATTEND_NAME(name, LANES)
#define VECTOR ATTEND(vector)
/* Sums that are kept in registers together: of so many queries and tokens, or queries and vectors of values.
 * AVX2 has half as many registers as AVX-512 and NEON. */
#define SUMS_AT_ONCE (LANES == 8 ? 8 : 16)
#define QUERIES_AT_ONCE (LANES == 8 ? 2 : 4)
#define VECTORS_AT_ONCE 4

typedef float VECTOR __attribute__((vector_size(4 * LANES)));

/* `count` values from value i on, up to LANES, with zeros behind them. */
ALWAYS_INLINE void ATTEND(load)(const enum dtype dtype, const void *values, int64_t i, int64_t count,
                                VECTOR *out) {
    typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
    typedef uint32_t words __attribute__((vector_size(4 * LANES)));
    halves bits = {0};
    *out = (VECTOR){0};
    if (dtype == F32) {
        memcpy(out, (const float *)values + i, (size_t)count * sizeof(float));
        return;
    }
    memcpy(&bits, (const uint16_t *)values + i, (size_t)count * sizeof(uint16_t));
    const words wide = __builtin_convertvector(bits, words) << 16;
    memcpy(out, &wide, sizeof *out);
}

/* Adds up each of four vectors, all in the same order. */
ALWAYS_INLINE void ATTEND(add_up)(const VECTOR *sums, float *out) {
    typedef float quad __attribute__((vector_size(16)));
    typedef int32_t places __attribute__((vector_size(16)));
    quad part[4][LANES / 4], pair[2];
    memcpy(part, sums, sizeof part);
    UNROLLED (i, 4)
        for (int width = LANES / 8; width > 0; width /= 2)
            UNROLLED (j, width) part[i][j] += part[i][j + width];
    UNROLLED (i, 2) {
        const quad a = part[2 * i][0], b = part[2 * i + 1][0];
        pair[i] =
            __builtin_shuffle(a, b, (places){0, 1, 4, 5}) + __builtin_shuffle(a, b, (places){2, 3, 6, 7});
    }
    const quad even = __builtin_shuffle(pair[0], pair[1], (places){0, 2, 4, 6});
    const quad odd = __builtin_shuffle(pair[0], pair[1], (places){1, 3, 5, 7});
    const quad all = even + odd;
    memcpy(out, &all, sizeof all);
}

/* Adds the products of values [i, i + count) to the sums [queries][tokens]. */
ALWAYS_INLINE void ATTEND(multiply)(const enum dtype dtype, const struct attend *a, int64_t q,
                                    const int queries, const void *keys, const int tokens, int64_t i,
                                    int64_t count, VECTOR *sums) {
    VECTOR query[QUERIES_AT_ONCE];
    UNROLLED (n, queries) ATTEND(load)(F32, a->query[q + n], i, count, &query[n]);
    UNROLLED (k, tokens) {
        VECTOR key;
        ATTEND(load)(dtype, keys, k * a->head_dim + i, count, &key);
        UNROLLED (n, queries) sums[n * tokens + k] += query[n] * key;
    }
}

/* Scores of `queries` x `tokens`, from those of query `q` and token `t` on. */
ALWAYS_INLINE void ATTEND(scores)(const enum dtype dtype, const struct attend *a, int64_t q,
                                  const int queries, const struct attend_part *part, int64_t t,
                                  const int tokens) {
    VECTOR sums[SUMS_AT_ONCE] = {0};
    float scores[SUMS_AT_ONCE];
    const void *keys = (const char *)part->rows + (t - part->first) * part->stride * nbytes_of(dtype);
    int64_t i = 0;
    for (; i + LANES <= a->head_dim; i += LANES)
        ATTEND(multiply)(dtype, a, q, queries, keys, tokens, i, LANES, sums);
    if (i < a->head_dim) ATTEND(multiply)(dtype, a, q, queries, keys, tokens, i, a->head_dim - i, sums);
    UNROLLED (n, (queries * tokens + 3) / 4) ATTEND(add_up)(sums + 4 * n, scores + 4 * n);
    UNROLLED (n, queries)
        memcpy(a->scores + (q + n) * a->tokens + t, scores + n * tokens, (size_t)tokens * sizeof *scores);
}

/* Adds the weighted values of a part's tokens [t, end) to the outputs of `queries` queries, from value i on:
 * up to `vectors` x LANES of them. */
ALWAYS_INLINE void ATTEND(values)(const enum dtype dtype, const struct attend *a, int64_t q,
                                  const int queries, const struct attend_part *part, int64_t t, int64_t end,
                                  int64_t i, const int vectors, int64_t count) {
    VECTOR sums[SUMS_AT_ONCE];
    const int64_t width = count < LANES ? count : LANES;
    const float *weights = a->scores + q * a->tokens;
    float *out = a->out + q * part->size + i;
    UNROLLED (n, queries)
        UNROLLED (v, vectors)
            ATTEND(load)(F32, out, n * part->size + v * LANES, width, &sums[n * vectors + v]);
    for (; t < end; t++)
        UNROLLED (v, vectors) {
            VECTOR value;
            ATTEND(load)(dtype, part->rows, (t - part->first) * part->stride + i + v * LANES, width, &value);
            UNROLLED (n, queries) sums[n * vectors + v] += weights[n * a->tokens + t] * value;
        }
    UNROLLED (n, queries) memcpy(out + n * part->size, &sums[n * vectors], (size_t)count * sizeof *out);
}

/* A pass of `queries` queries over the tokens of a part. */
ALWAYS_INLINE void ATTEND(group)(const enum attend_pass pass, const enum dtype dtype, const struct attend *a,
                                 int64_t q, const int queries, const struct attend_part *part) {
    const int64_t first = a->first[q], last = a->end[q + queries - 1];
    const int64_t end = last < part->end ? last : part->end;
    int64_t t = first > part->first ? first : part->first, i = 0;
    if (t >= end) return;
    if (pass == SCORES) {
        const int share = SUMS_AT_ONCE / queries;
        for (; t + share <= end; t += share) ATTEND(scores)(dtype, a, q, queries, part, t, share);
        for (; t < end; t++) ATTEND(scores)(dtype, a, q, queries, part, t, 1);
        return;
    }
    const int64_t most = VECTORS_AT_ONCE * LANES;
    for (; i + most <= part->size; i += most)
        ATTEND(values)(dtype, a, q, queries, part, t, end, i, VECTORS_AT_ONCE, most);
    for (; i + LANES <= part->size; i += LANES)
        ATTEND(values)(dtype, a, q, queries, part, t, end, i, 1, LANES);
    if (i < part->size) ATTEND(values)(dtype, a, q, queries, part, t, end, i, 1, part->size - i);
}

ALWAYS_INLINE void ATTEND(groups)(const enum attend_pass pass, const enum dtype dtype, const struct attend *a,
                                  const struct attend_part *part) {
    int64_t q = 0;
    for (; q + QUERIES_AT_ONCE <= a->queries; q += QUERIES_AT_ONCE)
        ATTEND(group)(pass, dtype, a, q, QUERIES_AT_ONCE, part);
    for (; q + 2 <= a->queries; q += 2) ATTEND(group)(pass, dtype, a, q, 2, part);
    for (; q < a->queries; q++) ATTEND(group)(pass, dtype, a, q, 1, part);
}

/* A pass of all queries over the keys or values of all tokens, part by part. */
ALWAYS_INLINE void ATTEND(parts)(const enum attend_pass pass, const enum dtype dtype, const struct attend *a,
                                 const struct attend_part *all) {
    const int64_t size = all->size;
    for (int64_t t = 0; t < a->tokens; t += PART_TOKENS) {
        struct attend_part part = *all;
        part.rows = (const char *)all->rows + t * all->stride * nbytes_of(dtype);
        part.first = t;
        part.end = a->tokens - t < PART_TOKENS ? a->tokens : t + PART_TOKENS;
        if (dtype == F32 || a->queries < CONVERTING_PAYS) {
            ATTEND(groups)(pass, dtype, a, &part);
            continue;
        }
        for (int64_t row = 0; row < part.end - t; row++)
            for (int64_t i = 0; i < size; i++)
                a->part[row * size + i] = stored_value(dtype, part.rows, row * all->stride + i);
        part.rows = a->part;
        part.stride = size;
        ATTEND(groups)(pass, F32, a, &part);
    }
}

ALWAYS_INLINE void ATTEND(all)(const enum dtype dtype, const struct attend *a) {
    const struct attend_part keys = attend_keys(a), values = attend_values(a);
    float sums[ATTEND_QUERIES];
    ATTEND(parts)(SCORES, dtype, a, &keys);
    for (int64_t q = 0; q < a->queries; q++) sums[q] = attend_weights(a, q);
    memset(a->out, 0, (size_t)(a->queries * values.size) * sizeof *a->out);
    ATTEND(parts)(WEIGHTED_VALUES, dtype, a, &values);
    for (int64_t q = 0; q < a->queries; q++)
        for (int64_t i = 0; i < values.size; i++) a->out[q * values.size + i] /= sums[q];
}

#undef ATTEND
#undef VECTOR
#undef SUMS_AT_ONCE
#undef QUERIES_AT_ONCE
#undef VECTORS_AT_ONCE
