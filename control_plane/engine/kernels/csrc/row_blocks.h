/* Rows of a ragged batch that attend together. */

#ifndef FAASMOE_ROW_BLOCKS_H
#define FAASMOE_ROW_BLOCKS_H

#include <stdint.h>

#include "attend.h"

/* Rows of one sequence that follow each other. */
struct row_block {
    int64_t first, rows;
};

/* Cuts rows into blocks, each of which has up to ATTEND_QUERIES queries if `shared` queries of a row share a
 * head of keys; at least a row. `blocks` has room for one per row. Returns their number. */
static int64_t cut_rows(int64_t rows, const int64_t *lanes, const int64_t *positions, int64_t shared,
                        struct row_block *blocks) {
    const int64_t most = shared < ATTEND_QUERIES ? ATTEND_QUERIES / shared : 1;
    int64_t count = 0;
    for (int64_t row = 0; row < rows; row++) {
        struct row_block *last = count ? &blocks[count - 1] : NULL;
        if (last && last->rows < most && lanes[row] == lanes[row - 1] &&
            positions[row] == positions[row - 1] + 1)
            last->rows++;
        else
            blocks[count++] = (struct row_block){row, 1};
    }
    return count;
}

/* The number of tokens that a row sees. */
static int64_t kv_seen(int64_t position, int64_t window) {
    return position + 1 < window ? position + 1 : window;
}

#endif
