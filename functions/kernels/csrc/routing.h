/* Routes (a row and one of its experts), sorted by expert and divided into panels. */

#ifndef FAASMOE_ROUTING_H
#define FAASMOE_ROUTING_H

#include <stdint.h>
#include <stdlib.h>

#include "layout.h"

struct route {
    int64_t row;
    float weight;
};

/* Routes [first, first + rows) of one expert, which are multiplied with a tile of its weights together. */
struct panel_routes {
    int64_t first;
    int rows;
};

struct routed_expert {
    const uint8_t *weights;
    int64_t first_panel, panels;
};

struct routing {
    int64_t routes, panels, experts;
    struct route *route;
    struct panel_routes *panel;
    struct routed_expert *expert;
};

static void routing_free(struct routing *r) {
    free(r->route);
    free(r->panel);
    free(r->expert);
}

/* starts[e] = the index of expert e's first route, which is the number of routes of all experts before it. */
static inline void count_routes(int64_t *starts, const int16_t *index, int64_t count, int64_t experts) {
    for (int64_t i = 0; i < count; i++)
        if (index[i] >= 0) starts[index[i] + 1]++;
    for (int64_t e = 0; e < experts; e++) starts[e + 1] += starts[e];
}

/* Divides routes into panels of nearly equal height: a panel of one row is almost as slow as a full one. */
static void cut_panels(struct routing *r, int64_t first, int64_t count, int max_rows) {
    int64_t panels = ceil_div(count, max_rows);
    for (; panels > 0; panels--) {
        const int rows = (int)ceil_div(count, panels);
        r->panel[r->panels++] = (struct panel_routes){first, rows};
        first += rows;
        count -= rows;
    }
}

/* Sorts routes by expert; an expert's routes keep the order of rows. Every index must be below `experts`, and
 * every expert in use must have an offset. Returns 0, or -1 when out of memory. Either way the caller must
 * call routing_free. */
static inline int routing_build(struct routing *r, const int16_t *index, const float *weight, int64_t rows,
                                int64_t top_k, const uint8_t *block, const int64_t *offsets, int64_t experts,
                                int max_rows) {
    const int64_t count = rows * top_k;
    int64_t *starts = calloc((size_t)experts + 1, sizeof *starts);
    *r = (struct routing){
        .route = calloc((size_t)count + 1, sizeof *r->route),
        .panel = calloc((size_t)count + 1, sizeof *r->panel),
        .expert = calloc((size_t)experts + 1, sizeof *r->expert),
    };
    if (!starts || !r->route || !r->panel || !r->expert) {
        free(starts);
        return -1;
    }
    count_routes(starts, index, count, experts);
    for (int64_t e = 0; e < experts; e++) {
        if (starts[e] == starts[e + 1]) continue;
        const int64_t first_panel = r->panels;
        cut_panels(r, starts[e], starts[e + 1] - starts[e], max_rows);
        r->expert[r->experts++] =
            (struct routed_expert){block + offsets[e], first_panel, r->panels - first_panel};
    }
    r->routes = starts[experts];
    for (int64_t i = 0; i < count; i++)
        if (index[i] >= 0) r->route[starts[index[i]]++] = (struct route){i / top_k, weight[i]};
    free(starts);
    return 0;
}

#endif
