/* A router's choice of experts, from the scores of its linear layer. Plain C that dense_isa.h compiles for
 * each instruction set. */

#ifndef FAASMOE_ROUTER_H
#define FAASMOE_ROUTER_H

#include <math.h>
#include <stdint.h>

#include "elementwise.h"
#include "softmax.h"

/* How an expert's score, which is its weight, is made of its value: by softmax over all experts, or by
 * sigmoid. The choice is by scores, or by the values themselves. */
enum scores { SOFTMAX, SIGMOID, SIGMOID_OF_CHOSEN };

struct router {
    enum dtype dtype; /* to which the weights are rounded */
    int64_t experts, top_k;
    int64_t groups, chosen_groups; /* of experts: only those of the chosen groups can be chosen */
    enum scores scores;
    int normalised;          /* whether the chosen experts' weights add up to `scale` */
    float scale;             /* the factor of all weights */
    const float *correction; /* [experts], added to scores for the choice alone; or NULL */
};

struct candidate {
    float score;
    int32_t expert;
};

ALWAYS_INLINE int is_better(const struct candidate *a, const struct candidate *b) {
    return a->score > b->score;
}

ALWAYS_INLINE void swap_candidates(struct candidate *a, struct candidate *b) {
    const struct candidate kept = *a;
    *a = *b;
    *b = kept;
}

/* Puts the median of three candidates in the place of `first`. */
ALWAYS_INLINE void median_first(struct candidate *first, struct candidate *a, struct candidate *b,
                                struct candidate *c) {
    struct candidate *low = is_better(a, b) ? b : a, *high = is_better(a, b) ? a : b;
    swap_candidates(first, is_better(low, c) ? low : is_better(high, c) ? c : high);
}

/* Sorts candidates [first, end), the best first. Equal ones keep their order. */
ALWAYS_INLINE void sort_candidates(struct candidate *c, int64_t first, int64_t end) {
    for (int64_t i = first + 1; i < end; i++)
        for (int64_t j = i; j > first && is_better(&c[j], &c[j - 1]); j--) swap_candidates(&c[j], &c[j - 1]);
}

/* Moves the best `count` candidates of `all` to the front, the best first.
 *
 * Equal scores are common in bfloat16, and then it matters which of them stay. This is quickselect with the
 * pivots of the C++ library's nth_element, so that the choice is that of torch.topk for up to 64 * count
 * experts. */
ALWAYS_INLINE void select_candidates(struct candidate *c, int64_t all, int64_t count) {
    int64_t first = 0, end = all;
    while (end - first > 3) {
        median_first(&c[first], &c[first + 1], &c[first + (end - first) / 2], &c[end - 1]);
        const struct candidate pivot = c[first];
        int64_t left = first + 1, right = end;
        for (;; left++) {
            /* Scores that are not numbers have no order, so the bounds must be checked. */
            while (left < end - 1 && is_better(&c[left], &pivot)) left++;
            do right--;
            while (right > first && is_better(&pivot, &c[right]));
            if (left >= right) break;
            swap_candidates(&c[left], &c[right]);
        }
        if (left <= count - 1)
            first = left;
        else
            end = left;
    }
    sort_candidates(c, first, end);
    sort_candidates(c, 0, count);
}

/* The sum of the two best scores of candidates [first, end). */
ALWAYS_INLINE float group_score(const struct candidate *c, int64_t first, int64_t end) {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t i = first; i < end; i++) {
        const float score = c[i].score;
        if (score > best)
            second = best, best = score;
        else if (score > second)
            second = score;
    }
    return best + second;
}

/* Makes the scores of all candidates [experts] infinitely low that are not in the best groups. `groups` is
 * scratch [r->groups]. */
ALWAYS_INLINE void keep_groups(const struct router *r, struct candidate *c, struct candidate *groups) {
    const int64_t size = r->experts / r->groups;
    for (int64_t g = 0; g < r->groups; g++)
        groups[g] = (struct candidate){group_score(c, g * size, (g + 1) * size), (int32_t)g};
    select_candidates(groups, r->groups, r->chosen_groups);
    for (int64_t g = r->chosen_groups; g < r->groups; g++)
        for (int64_t i = 0; i < size; i++) c[groups[g].expert * size + i].score = -INFINITY;
}

/* Chooses the experts index [top_k] of a row with these values [experts], and their weights [top_k]. The
 * values change; `candidates` [experts + groups] is scratch. */
ALWAYS_INLINE void choose_experts(const struct router *r, float *scores, struct candidate *candidates,
                                  int64_t *index, float *weights) {
    if (r->scores == SIGMOID)
        for (int64_t e = 0; e < r->experts; e++) scores[e] = sigmoid(scores[e]);
    if (r->scores == SOFTMAX) softmax(scores, r->experts);
    for (int64_t e = 0; e < r->experts; e++)
        candidates[e] =
            (struct candidate){r->correction ? scores[e] + r->correction[e] : scores[e], (int32_t)e};
    if (r->chosen_groups < r->groups) keep_groups(r, candidates, candidates + r->experts);
    select_candidates(candidates, r->experts, r->top_k);
    float sum = 0;
    for (int64_t k = 0; k < r->top_k; k++) {
        index[k] = candidates[k].expert;
        const float score = scores[index[k]];
        weights[k] = r->scores == SIGMOID_OF_CHOSEN ? sigmoid(score) : score;
        sum += weights[k];
    }
    for (int64_t k = 0; k < r->top_k; k++)
        weights[k] = rounded(r->dtype, r->scale * (r->normalised ? weights[k] / sum : weights[k]));
}

#endif
