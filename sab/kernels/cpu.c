/* Products with bit-packed weights on a CPU; compiled on first use by cpu.py, which describes the layout.

Sixteen rows of the weight form a tile: lane r of every vector belongs to row r, so that sums and scales need no
step across lanes. Four columns form a cell. A cell's signs are four bits of a row, and sum_j s_j x_j over the cell
is one of sixteen numbers: they are put into a table once, and each row looks its own up. Only eight of them differ
but for the sign, so bits 0..2 of a nibble are stored inverted where bit 3 is set: entry 8 + l is minus entry l,
and narrow vectors need half a table. The code is linear over xor, so the xor of two coded planes is the code of
their xor. Four cells, 16 columns, form a unit: the low or the high nibbles of a dword.

Signs s in {-1, 1} with a group bit g are kept as planes a = s and b = s (-1)^g:
    sum over group 0 of s x = (sum a x + sum b x) / 2,    over group 1 = (sum a x - sum b x) / 2.

exact: tables of floats. fast: tables of int8, one scale per block, token and table; sums are exact integers.

Kept weights (levels of 8 bits somewhere in a row, PB-LLM) have the sign -1 in the plane; what that gives them is taken
back and their own value put in its place, in floats in both modes: each input is gathered by its index.

The second half of this file is included once for every instruction set and mode. */
#ifndef PATH

#define _GNU_SOURCE /* syscall */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#include <sys/syscall.h>
#include <unistd.h>
#define BFLOAT __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define MATRIX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512bf16")))
#endif
#endif

enum { LANES = 16, CELLS = 4, UNIT = 64, PADDING = 0xFFFF };       /* UNIT: table entries of 16 columns */
enum { ONE = 0, SHARED = 1, SPLIT = 2, INTEGER = 3, NONE = 4 };    /* what a part of a block looks up */
enum { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AVX512VNNI = 3 };
enum { GROUP = 16, PANEL = 2048, DEEP = 32 };                       /* prefill: tiles, columns, columns of one step */
enum { TOGETHER = 8, NEAR = 512 };                                  /* by vectors: tokens, columns that stay near */
enum { FLOAT = 0, BFLOAT16 = 1, PAIRS = 2 };                       /* how weights are unpacked; see `interleave` */
enum { KEPT_BLOCK = 128 };                                         /* columns of a block that may have kept weights */
enum { MOST_UNITS = 128 };                                          /* of a block whose sums fit 16 bits (AVX2) */
enum { VECTORS = 0, MATRIX_UNIT = 1 };                             /* what multiplies bfloat16 */
enum { TABLES = 6 };                                               /* main 0 1, tail 2 3, second signs 4 5 */

typedef struct {
    int64_t rows, width, tiles, blocks, block_size, units;         /* units in a block: even */
    int64_t planes, main_kind, tail_kind, slots, residuals, means, parameters, small;
    int64_t columns, second_columns, tail_units;
    int64_t scale_blocks, kept_blocks;                             /* blocks, or 1 where all share; blocks, or 0 */
    const uint32_t *words;                                         /* [blocks, tiles, planes, units / 2, 16] */
    const uint32_t *second;                                        /* [ceil(tail_units / 2), tiles, 16] */
    const void *scale;                                             /* [scale_blocks, tiles, parameters, 16] f16, i8 */
    const uint8_t *zero;                                           /* [blocks, tiles, 16] */
    const uint16_t *step;                                          /* [tiles, 16] f16 */
    const uint16_t *column;                                        /* [columns, blocks, units * 16] f16 */
    const uint16_t *second_column;                                 /* [second_columns, tail_units * 16] f16 */
    const uint16_t *order;                                         /* [blocks, units * 16] */
    const int32_t *start;                                          /* [blocks] first salient position */
    const uint8_t *kept_level, *kept_index;                        /* [kept + 16] row by row; column inside the block */
    const uint8_t *kept_count;                                     /* [rows, kept_blocks] */
    const int64_t *kept_start;                                     /* [rows] first of the row in the two above */
    const uint16_t *kept_scale;                                    /* [tiles, 16] f16 */
    const uint8_t *kept_zero;                                      /* [tiles, 16] */
} Layer;

typedef struct {
    char *table[TABLES];
    float delta[TABLES];
    float sum, tail_sum;                                           /* of the inputs, for row means */
} Lookup;

typedef struct {
    const Layer *layer;
    const void *x;                                                 /* [batch, width] float, prefill: bfloat16 */
    uint16_t *halves;                                              /* x in bfloat16 as `arrange` puts it */
    void *y;                                                       /* [batch, rows] float, prefill: or bfloat16 */
    void *dense;                                                   /* [width, tiles * 16] float or bfloat16 */
    int64_t batch, first_tile, last_tile, share, multiple;         /* a share is a multiple of this many tiles */
    int bfloat, unit, twice;                                       /* twice: a second share for whoever is done early */
    int (*body)(const void *job, int64_t first_tile, int64_t last_tile);
    atomic_llong next;
    atomic_int failed;
} Job;

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel of torch's own OpenMP */

static const float SIGN[CELLS][LANES] = {
    {-1, 1, -1, 1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, 1, -1},
    {-1, -1, 1, 1, -1, -1, 1, 1, 1, 1, -1, -1, 1, 1, -1, -1},
    {-1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1},
    {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1},
};

/* Where column j of a unit lies in a dword, its high nibbles moved down; how far from the top; and that bit. */
static const int SHIFT[LANES] = {31, 30, 29, 28, 23, 22, 21, 20, 15, 14, 13, 12, 7, 6, 5, 4};
static const uint8_t PLACE[LANES] = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
static const uint32_t BIT[LANES] = {1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 8,  1u << 9,  1u << 10, 1u << 11,
                                    1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 24, 1u << 25, 1u << 26, 1u << 27};

static inline float half_to_float(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7FFF) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;                                             /* moves the exponent; right for denormals too */
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

/* The first kept weight of each row of some tiles. */
static inline void next_kept(const Layer *layer, int64_t first_tile, int64_t last_tile, int64_t *next) {
    for (int64_t row = first_tile * LANES; row < last_tile * LANES && row < layer->rows; row++)
        next[row - first_tile * LANES] = layer->kept_start[row];
}

/* Column scales of one block as floats [4, places]: of the first signs by group bit, then of the second signs. */
static void column_scales(const Layer *layer, int64_t block, int64_t tail_unit, float *column) {
    int64_t places = layer->units * LANES, low = layer->start[block] / LANES;
    for (int64_t g = 0; g < 2; g++) {
        float *first = column + g * places, *second = first + 2 * places;
        int64_t line = layer->columns == 2 ? g : 0, other = layer->second_columns == 2 ? g : 0;
        for (int64_t c = 0; c < places; c++) {
            first[c] = layer->columns ? half_to_float(layer->column[(line * layer->blocks + block) * places + c]) : 1;
            second[c] = layer->columns == 1 ? first[c] : 1;
            if (layer->second_columns && c >= low * LANES)
                second[c] = half_to_float(
                    layer->second_column[(other * layer->tail_units + tail_unit - low) * LANES + c]);
        }
    }
}

static inline const void *scale_of(const Layer *layer, int64_t block, int64_t tile) {
    int64_t at = (layer->scale_blocks > 1 ? block * layer->tiles : 0) + tile;
    return (const char *)layer->scale + at * layer->parameters * LANES * (layer->small ? 1 : 2);
}

static void worker(void *data) {
    Job *job = data;
    for (;;) {
        int64_t first = atomic_fetch_add(&job->next, job->share);
        if (first >= job->last_tile) return;
        int64_t last = first + job->share < job->last_tile ? first + job->share : job->last_tile;
        if (job->body(job, first, last)) atomic_store(&job->failed, 1);
    }
}

#ifndef _WIN32
static void *thread_main(void *data) {
    worker(data);
    return NULL;
}
#endif

static int run(Job *job, int threads, Parallel parallel) {
    int64_t tiles = job->last_tile - job->first_tile;
    if (threads > tiles) threads = (int)tiles;
    if (threads < 1) threads = 1;
    int64_t pieces = job->twice && threads > 1 ? 2 * threads : threads;
    job->share = (tiles + pieces - 1) / pieces;
    if (job->multiple) job->share = (job->share + job->multiple - 1) / job->multiple * job->multiple;
    atomic_init(&job->next, job->first_tile);
    atomic_init(&job->failed, 0);
    if (threads == 1) {
        worker(job);
    } else if (parallel) {
        parallel(worker, job, (unsigned)threads, 0);
    } else {
#ifndef _WIN32
        enum { MOST = 64 };
        pthread_t others[MOST];
        int started = 0;
        while (started < threads - 1 && started < MOST)
            if (pthread_create(&others[started], NULL, thread_main, job)) break; else started++;
        worker(job);
        while (started > 0) pthread_join(others[--started], NULL);
#else
        worker(job);
#endif
    }
    return atomic_load(&job->failed) ? -1 : 0;
}

#define GLUE_(name, path, mode) name##_##path##_##mode
#define GLUE(name, path, mode) GLUE_(name, path, mode)
#define INLINE static inline __attribute__((always_inline)) TARGET
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLLED _Pragma("GCC unroll 16")
#else
#define UNROLLED
#endif

#define PATH 0
#define FAST 0
#include __FILE__
#undef FAST
#define FAST 1
#include __FILE__
#undef FAST
#undef PATH
#if defined(__x86_64__)
#define PATH 1
#define FAST 0
#include __FILE__
#undef FAST
#define FAST 1
#include __FILE__
#undef FAST
#undef PATH
#define PATH 2
#define FAST 0
#include __FILE__
#undef FAST
#undef PATH
#define PATH 3
#define FAST 1
#include __FILE__
#undef FAST
#undef PATH
#ifdef BFLOAT
#define PATH 4
#define FAST 0
#include __FILE__
#undef FAST
#undef PATH
#endif
#endif

#ifdef BFLOAT
/* Many tokens at once in bfloat16: a group of tiles is dequantized, some columns at a time, and multiplied while it is
   in cache, by the matrix unit or by vector instructions. Which of them are there, as bits: */
#ifndef HAS_MATRIX_UNIT /* the last asks for it */
#define HAS_MATRIX_UNIT ((d >> 22 & 1) && (d >> 24 & 1) && syscall(SYS_arch_prctl, 0x1023, 18) == 0)
#endif
static int units(void) {
    unsigned a, b, c, d = 0;
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512bf16"))
        return 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    return 1 << VECTORS | HAS_MATRIX_UNIT << MATRIX_UNIT;
}

/* Columns j and j + 8 of each unit side by side, [places / 2, 16, 2], as both units take them: the bits of the two lie 16
   apart in a dword, so that one shift finds both signs. `plain`: [places, 16]. */
static BFLOAT void interleave(const uint16_t *plain, int64_t places, uint16_t *pairs) {
    for (int64_t c = 0; c < places; c += 2) {
        const uint16_t *from = plain + (c / LANES * LANES + c % LANES / 2) * LANES;
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(from + 8 * LANES)));
        _mm512_storeu_si512(pairs + c * LANES, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

/* Tokens in pieces, [batch / 16, columns / 32, 16, 32], their columns in the order of the places of pairs; zeros where
   there is no column or no token. */
static int arrange(const void *data, int64_t first_piece, int64_t last_piece) {
    const Job *job = data;
    const Layer *layer = job->layer;
    int64_t places = layer->units * LANES, columns = layer->blocks * places;
    int64_t *from = malloc((size_t)columns * sizeof *from);
    if (!from) return -1;
    for (int64_t c = 0; c < columns; c++) {
        int64_t block = c / places, in_unit = c % LANES / 2 + c % 2 * 8;
        int64_t place = layer->order[block * places + c % places / LANES * LANES + in_unit];
        from[c] = place == PADDING ? -1 : block * layer->block_size + place;
    }
    for (int64_t token = first_piece * LANES; token < last_piece * LANES; token++) {
        uint16_t *to = job->halves + token / LANES * LANES * columns + token % LANES * DEEP;
        const uint16_t *x = (const uint16_t *)job->x + token * layer->width;
        for (int64_t c = 0; c < columns; c += DEEP)
            for (int64_t k = 0; k < DEEP; k++)
                to[c * LANES + k] = token < job->batch && from[c + k] >= 0 ? x[from[c + k]] : 0;
    }
    free(from);
    return 0;
}

#ifndef LOAD_CONFIGURATION /* gcc 11 and 12 take _tile_loadconfig to read 8 bytes, and leave out what writes the others */
#define LOAD_CONFIGURATION(tiles) __asm__ volatile("ldtilecfg %0" : : "m"(tiles))
#endif
static MATRIX void configure(void) {
    struct { uint8_t palette, row, unused[14]; uint16_t bytes[16]; uint8_t rows[16]; } tiles = {.palette = 1};
    for (int t = 0; t < 8; t++) tiles.bytes[t] = 64, tiles.rows[t] = 16;
    LOAD_CONFIGURATION(tiles);
}

/* sums [8, GROUP * 16] += 8 tokens of x times two tiles. */
static BFLOAT void by_vectors(const uint16_t *x, const uint16_t *pairs, int64_t columns, float *sums) {
    enum { WIDE = GROUP * LANES };
    __m512 left[TOGETHER], right[TOGETHER];
    UNROLLED for (int t = 0; t < TOGETHER; t++) {
        left[t] = _mm512_loadu_ps(sums + t * WIDE);
        right[t] = _mm512_loadu_ps(sums + t * WIDE + LANES);
    }
    for (int64_t c = 0; c < columns; c += DEEP)
        for (int64_t k = 0; k < DEEP; k += 2) {
            const uint16_t *w = pairs + (c + k) * LANES, *at = x + c * LANES + k;
            __m512bh l = (__m512bh)_mm512_loadu_si512(w), r = (__m512bh)_mm512_loadu_si512(w + PANEL * LANES);
            UNROLLED for (int t = 0; t < TOGETHER; t++) {
                int both;
                memcpy(&both, at + t * DEEP, sizeof both);
                __m512bh token = (__m512bh)_mm512_set1_epi32(both);
                left[t] = _mm512_dpbf16_ps(left[t], token, l);
                right[t] = _mm512_dpbf16_ps(right[t], token, r);
            }
        }
    UNROLLED for (int t = 0; t < TOGETHER; t++) {
        _mm512_storeu_ps(sums + t * WIDE, left[t]);
        _mm512_storeu_ps(sums + t * WIDE + LANES, right[t]);
    }
}

/* sums [32, GROUP * 16] += 32 tokens of x times two tiles; `below`: from 16 tokens to the next 16. */
static MATRIX void two_by_two(const uint16_t *x, int64_t below, const uint16_t *pairs, int64_t columns, float *sums) {
    enum { WIDE = GROUP * LANES * 4 };
    float *lower = sums + LANES * GROUP * LANES;
    _tile_loadd(0, sums, WIDE);
    _tile_loadd(1, sums + LANES, WIDE);
    _tile_loadd(2, lower, WIDE);
    _tile_loadd(3, lower + LANES, WIDE);
    for (int64_t c = 0; c < columns; c += DEEP) {
        _tile_loadd(4, x + c * LANES, 64);
        _tile_loadd(5, x + below + c * LANES, 64);
        _tile_loadd(6, pairs + c * LANES, 64);
        _tile_loadd(7, pairs + (PANEL + c) * LANES, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, WIDE);
    _tile_stored(1, sums + LANES, WIDE);
    _tile_stored(2, lower, WIDE);
    _tile_stored(3, lower + LANES, WIDE);
}

static BFLOAT void to_bfloat(uint16_t *to, const float *from, int64_t count) {
    for (int64_t c = 0; c < count; c += LANES) {
        __mmask16 kept = (__mmask16)(count - c < LANES ? (1u << (count - c)) - 1 : 0xFFFF);
        _mm256_mask_storeu_epi16(to + c, kept, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(kept, from + c)));
    }
}

static MATRIX void release(void) { _tile_release(); }

static BFLOAT int prefill(const void *data, int64_t first_tile, int64_t last_tile) {
    const Job *job = data;
    const Layer *layer = job->layer;
    int64_t padded = (job->batch + 31) / 32 * 32, places = layer->units * LANES, columns = layer->blocks * places;
    int64_t per_panel = PANEL / places;
    size_t sums_bytes = (size_t)(padded * GROUP * LANES) * 4, panel_bytes = (size_t)PANEL * LANES * 2;
    size_t column_bytes = (size_t)places * 4 * sizeof(float);
    char *memory = malloc(sums_bytes + panel_bytes * (GROUP + 1) + column_bytes + 64);
    if (!memory) return -1;
    char *aligned = memory + (64 - (uintptr_t)memory % 64) % 64;
    float *sums = (float *)aligned, *column = (float *)(aligned + sums_bytes + panel_bytes * (GROUP + 1));
    uint16_t *pairs = (uint16_t *)(aligned + sums_bytes), *plain = pairs + GROUP * PANEL * LANES;
    int64_t next[GROUP * LANES]; /* kept weight of each row */
    if (job->unit == MATRIX_UNIT) configure();
    for (int64_t group = first_tile; group < last_tile; group += GROUP) {
        int64_t count = last_tile - group < GROUP ? last_tile - group : GROUP, tail_unit = 0;
        memset(sums, 0, sums_bytes);
        if (layer->kept_blocks) next_kept(layer, group, group + count, next);
        if (count % 2) memset(pairs + count * PANEL * LANES, 0, panel_bytes);
        for (int64_t panel = 0; panel < layer->blocks; panel += per_panel) {
            int64_t last = panel + per_panel < layer->blocks ? panel + per_panel : layer->blocks;
            int64_t deep = (last - panel) * places;
            for (int64_t block = panel; block < last; block++) {
                if (layer->main_kind != INTEGER) column_scales(layer, block, tail_unit, column);
                for (int64_t tile = 0; tile < count; tile++) {
                    uint16_t *to = pairs + (tile * PANEL + (block - panel) * places) * LANES;
                    if (layer->main_kind == INTEGER) {
                        unpack_integer_pairs(layer, block, group + tile, to);
                    } else if (layer->main_kind == ONE && layer->means && layer->start[block] == places) {
                        unpack_two_values(layer, block, group + tile, to);
                        if (layer->kept_blocks) put_kept_4_0(layer, block, group + tile, next + tile * LANES, to, PAIRS);
                    } else if (!layer->means) {
                        unpack_pairs(layer, block, tail_unit, group + tile, column, to);
                    } else {
                        unpack_tile_4_0(layer, block, tail_unit, group + tile, column, plain, BFLOAT16);
                        interleave(plain, places, to);
                    }
                }
                tail_unit += layer->units - layer->start[block] / LANES;
            }
            const uint16_t *x = job->halves + panel * places * LANES;
            if (job->unit == MATRIX_UNIT) {
                for (int64_t token = 0; token < padded; token += 32)
                    for (int64_t tile = 0; tile < count; tile += 2)
                        two_by_two(x + token * columns, columns * LANES, pairs + tile * PANEL * LANES, deep,
                                   sums + (token * GROUP + tile) * LANES);
                continue;
            }
            for (int64_t tile = 0; tile < count; tile += 2)
                for (int64_t c = 0; c < deep; c += NEAR)
                    for (int64_t token = 0; token < job->batch; token += TOGETHER)
                        by_vectors(x + token / LANES * LANES * columns + c * LANES + token % LANES * DEEP,
                                   pairs + (tile * PANEL + c) * LANES, deep - c < NEAR ? deep - c : NEAR,
                                   sums + (token * GROUP + tile) * LANES);
        }
        int64_t row = group * LANES, rows = layer->rows - row < count * LANES ? layer->rows - row : count * LANES;
        for (int64_t token = 0; token < job->batch; token++) {
            const float *from = sums + token * GROUP * LANES;
            int64_t at = token * layer->rows + row;
            if (job->bfloat)
                to_bfloat((uint16_t *)job->y + at, from, rows);
            else
                memcpy((float *)job->y + at, from, (size_t)rows * sizeof(float));
        }
    }
    if (job->unit == MATRIX_UNIT) release();
    free(memory);
    return 0;
}
#else
static int units(void) { return 0; }
#define arrange NULL
#define prefill NULL
#endif

/* y [batch, rows], float or bfloat16, = x W^T with x [batch, width] and W in bfloat16. `halves`: room for the batch, filled
   up to a multiple of 32, times all places of the blocks. As sab_multiply, or -3 without that unit or for blocks that are
   too wide. */
int sab_prefill(const Layer *layer, const uint16_t *x, uint16_t *halves, void *y, int64_t batch, int bfloat, int unit,
                int threads, Parallel parallel) {
    if (unit < VECTORS || unit > MATRIX_UNIT || !(units() >> unit & 1) || layer->units * LANES > PANEL) return -3;
    Job order = {.layer = layer, .x = x, .halves = halves, .batch = batch, .last_tile = (batch + 31) / 32 * 2,
                 .body = arrange};
    Job job = {.layer = layer, .halves = halves, .y = y, .batch = batch, .last_tile = layer->tiles,
               .bfloat = bfloat, .unit = unit, .body = prefill, .multiple = GROUP, .twice = 1};
    int failure = run(&order, threads, parallel);
    return failure ? failure : run(&job, threads, parallel);
}

/* Bit p is set where path p runs here, and bit 8 + u where unit u multiplies bfloat16. */
int sab_paths(void) {
    int found = 1 << PORTABLE;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found |= 1 << AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
        found |= 1 << AVX512;
        if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")) found |= 1 << AVX512VNNI;
    }
#endif
    return found | units() << 8;
}

/* y [batch, rows] = x [batch, width] W^T; 0, or -1 without memory, or -2 for a path that is not compiled in. */
int sab_multiply(const Layer *layer, const float *x, float *y, int64_t batch, int path, int fast, int threads,
                 Parallel parallel) {
    /* one share a thread: the tables of a token are made once for each share */
    Job job = {.layer = layer, .x = x, .y = y, .batch = batch, .last_tile = layer->tiles};
    switch (path) {
        case PORTABLE: job.body = fast ? multiply_0_1 : multiply_0_0; break;
#if defined(__x86_64__)
        case AVX2: {
            int64_t most = layer->main_kind == SPLIT ? MOST_UNITS / 2 : MOST_UNITS;
            job.body = fast && layer->units <= most ? multiply_1_1 : multiply_1_0;
            break;
        }
        case AVX512: job.body = multiply_2_0; break;
        case AVX512VNNI: job.body = fast ? multiply_3_1 : multiply_2_0; break;
#endif
        default: return -2;
    }
    return run(&job, threads, parallel);
}

/* Weights of the tiles from first_tile on, transposed: dense [width, count * 16], float or bfloat16. */
int sab_unpack(const Layer *layer, void *dense, int64_t first_tile, int64_t count, int bfloat, int path, int threads,
               Parallel parallel) {
    Job job = {.layer = layer, .dense = dense, .first_tile = first_tile, .last_tile = first_tile + count,
               .bfloat = bfloat, .twice = 1};
    switch (path) {
        case PORTABLE: job.body = unpack_0_0; break;
#if defined(__x86_64__)
        case AVX2: job.body = unpack_1_0; break;
        case AVX512: case AVX512VNNI: job.body = unpack_2_0; break;
#endif
        default: return -2;
    }
    return run(&job, threads, parallel);
}

#else /* ------------------------------------------------------------------ once per instruction set and mode */

#define NAME(name) GLUE(name, PATH, FAST)

#if PATH >= 2 /* AVX-512: one register holds a tile */

#if PATH == 4
#define TARGET BFLOAT
#elif FAST
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vnni,fma,f16c")))
#else
#define TARGET __attribute__((target("avx512f,avx512bw,fma,f16c")))
#endif
#define VF __m512
#define VU __m512i
#define splat(value) _mm512_set1_ps(value)
#define load_f(from) _mm512_loadu_ps(from)
#define store_f(to, value) _mm512_storeu_ps(to, value)
#define add(a, b) _mm512_add_ps(a, b)
#define sub(a, b) _mm512_sub_ps(a, b)
#define mul(a, b) _mm512_mul_ps(a, b)
#define fma3(sum, a, b) _mm512_fmadd_ps(a, b, sum)
#define load_u(from) _mm512_loadu_si512(from)
#define xor_u(a, b) _mm512_xor_si512(a, b)
#define high_nibbles(a) _mm512_srli_epi32(a, 4)
#define load_half(from) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(from)))
#define load_small(from) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from))))
#define load_byte(from) _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(from))))
#if FAST
#define store_small(to, value) \
    _mm_storeu_si128((__m128i *)(to), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value)))
#define SUM __m512i
#define SUM_ZERO _mm512_setzero_si512()
#define total_of(sum) _mm512_cvtepi32_ps(sum)
INLINE void NAME(look_up)(VU w, const char *table, SUM *sum, int less) { /* the other half of a table is less itself */
    VU at = _mm512_ternarylogic_epi32(w, _mm512_set1_epi32(0x0F0F0F0F), _mm512_set1_epi32(less ? 0x38281808 : 0x30201000),
                                      0x6A);
    *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi8(1), _mm512_permutexvar_epi8(at, load_u(table)));
}
#else
#define and_u(a, bits) _mm512_and_si512(a, _mm512_set1_epi32((int)(bits)))
#define shifted(a, places) _mm512_srli_epi32(a, places)
#define pick(w, bit, zero, one) \
    _mm512_mask_blend_ps(_mm512_test_epi32_mask(w, _mm512_set1_epi32((int)BIT[bit])), zero, one)
#define signed_by(w, bit, value) /* value ^ (~(w << (31 - bit)) & the sign bit) */ \
    _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(value), \
                                                  _mm512_sllv_epi32(w, _mm512_set1_epi32(SHIFT[bit])), \
                                                  _mm512_set1_epi32((int)0x80000000u), 0xD2))
#define scaled_by(w, bit, zero, at_zero, one, at_one) \
    _mm512_mask_mul_ps(mul(zero, splat(at_zero)), _mm512_test_epi32_mask(w, _mm512_set1_epi32((int)BIT[bit])), one, \
                       splat(at_one))
INLINE void NAME(store_bfloat)(uint16_t *to, VF value) { /* to the nearest, ties to even */
#if PATH == 4
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
#else
    VU bits = _mm512_castps_si512(value), last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    VU rounded = _mm512_add_epi32(_mm512_add_epi32(bits, last), _mm512_set1_epi32(0x7FFF));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}
#define SUM struct { VF even, odd; }
#define SUM_ZERO {_mm512_setzero_ps(), _mm512_setzero_ps()}
#define total_of(sum) add((sum).even, (sum).odd)
#endif

#elif PATH == 1 /* AVX2: two registers */

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define VF NAME(Floats)
#define VU NAME(Words)
typedef struct { __m256 l, h; } VF;
typedef struct { __m256i l, h; } VU;
#define BOTH(type, of) ((type){of(l), of(h)})
INLINE VF NAME(splat)(float v) { return (VF){_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
INLINE VF NAME(load_f)(const float *p) { return (VF){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void NAME(store_f)(float *p, VF v) { _mm256_storeu_ps(p, v.l); _mm256_storeu_ps(p + 8, v.h); }
INLINE VF NAME(add)(VF a, VF b) { return (VF){_mm256_add_ps(a.l, b.l), _mm256_add_ps(a.h, b.h)}; }
INLINE VF NAME(sub)(VF a, VF b) { return (VF){_mm256_sub_ps(a.l, b.l), _mm256_sub_ps(a.h, b.h)}; }
INLINE VF NAME(mul)(VF a, VF b) { return (VF){_mm256_mul_ps(a.l, b.l), _mm256_mul_ps(a.h, b.h)}; }
INLINE VF NAME(fma3)(VF s, VF a, VF b) {
    return (VF){_mm256_fmadd_ps(a.l, b.l, s.l), _mm256_fmadd_ps(a.h, b.h, s.h)};
}
INLINE VU NAME(load_u)(const uint32_t *p) {
    return (VU){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
INLINE VU NAME(xor_u)(VU a, VU b) { return (VU){_mm256_xor_si256(a.l, b.l), _mm256_xor_si256(a.h, b.h)}; }
INLINE VU NAME(high_nibbles)(VU a) { return (VU){_mm256_srli_epi32(a.l, 4), _mm256_srli_epi32(a.h, 4)}; }
INLINE VF NAME(load_half)(const uint16_t *p) {
    return (VF){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INLINE VF NAME(load_small)(const int8_t *p) {
    return (VF){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
INLINE VF NAME(load_byte)(const uint8_t *p) {
    return (VF){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
#if FAST
INLINE void NAME(store_small)(char *to, VF v) {
    __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(v.l), _mm256_cvtps_epi32(v.h));
    pairs = _mm256_permute4x64_epi64(pairs, 0xD8);
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}
/* Words by cell: the bytes of cells 0 and 1 in the halves of l, those of 2 and 3 in h, in the order of rows 0-3, 8-11,
   4-7, 12-15, so that a shuffle finds the entries of sixteen rows in each of two cells. */
INLINE VU NAME(by_cell)(VU w) {
    __m256i cells = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
                                     0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i l = _mm256_shuffle_epi8(w.l, cells), h = _mm256_shuffle_epi8(w.h, cells);
    return (VU){_mm256_permute4x64_epi64(_mm256_unpacklo_epi32(l, h), 0xD8),
                _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(l, h), 0xD8)};
}
/* Pairs of cells in 16 bits: an entry is at most 127, so MOST_UNITS of a block fit, or half of them where both planes
   are added up. */
#define SUM VU
#define SUM_ZERO {_mm256_setzero_si256(), _mm256_setzero_si256()}
INLINE __m256i NAME(cells_of)(__m256i sum) {
    return _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum)),
                            _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1)));
}
INLINE VF NAME(total_of)(VU sum) {
    __m256i l = NAME(cells_of)(sum.l), h = NAME(cells_of)(sum.h);
    return (VF){_mm256_cvtepi32_ps(_mm256_permute2x128_si256(l, h, 0x20)),
                _mm256_cvtepi32_ps(_mm256_permute2x128_si256(l, h, 0x31))};
}
#define total_of NAME(total_of)
INLINE void NAME(look_up)(VU w, const char *table, SUM *sum, int less) {
    __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi8(1);
    __m256i l = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)table), _mm256_and_si256(w.l, nibble));
    __m256i h = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(table + 32)), _mm256_and_si256(w.h, nibble));
    __m256i low = _mm256_maddubs_epi16(ones, _mm256_unpacklo_epi8(l, h));
    __m256i high = _mm256_maddubs_epi16(ones, _mm256_unpackhi_epi8(l, h));
    sum->l = less ? _mm256_sub_epi16(sum->l, low) : _mm256_add_epi16(sum->l, low);
    sum->h = less ? _mm256_sub_epi16(sum->h, high) : _mm256_add_epi16(sum->h, high);
}
#else
#define SUM VF
#define SUM_ZERO {_mm256_setzero_ps(), _mm256_setzero_ps()}
#define total_of(sum) (sum)
INLINE VU NAME(and_u)(VU a, uint32_t bits) {
    __m256i all = _mm256_set1_epi32((int)bits);
    return (VU){_mm256_and_si256(a.l, all), _mm256_and_si256(a.h, all)};
}
INLINE VU NAME(shifted)(VU a, int places) { return (VU){_mm256_srli_epi32(a.l, places), _mm256_srli_epi32(a.h, places)}; }
INLINE VF NAME(pick)(VU w, int bit, VF zero, VF one) {
    return (VF){_mm256_blendv_ps(zero.l, one.l, _mm256_castsi256_ps(_mm256_slli_epi32(w.l, 31 - PLACE[bit]))),
                _mm256_blendv_ps(zero.h, one.h, _mm256_castsi256_ps(_mm256_slli_epi32(w.h, 31 - PLACE[bit])))};
}
INLINE __m256i NAME(rounded)(__m256 value) { /* to bfloat16 in the low halves: to the nearest, ties to even */
    __m256i bits = _mm256_castps_si256(value);
    __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, last), _mm256_set1_epi32(0x7FFF)), 16);
}
INLINE void NAME(store_bfloat)(uint16_t *to, VF value) {
    __m256i both = _mm256_packus_epi32(NAME(rounded)(value.l), NAME(rounded)(value.h));
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(both, 0xD8));
}
INLINE __m256i NAME(sign_of)(__m256i w, int cell) {
    return _mm256_and_si256(_mm256_slli_epi32(w, 28 - 8 * cell), _mm256_set1_epi32((int)0x80000000u));
}
INLINE __m256 NAME(entry)(__m256i at, __m256i sign, const char *table, int cell) {
    __m256 entries = _mm256_loadu_ps((const float *)table + 16 * cell);
    return _mm256_xor_ps(_mm256_permutevar8x32_ps(entries, at), _mm256_castsi256_ps(sign));
}
INLINE void NAME(look_up)(VU w, const char *table, SUM *sum, int less) {
    UNROLLED for (int cell = 0; cell < CELLS; cell++) {
        __m256 l = NAME(entry)(_mm256_srli_epi32(w.l, 8 * cell), NAME(sign_of)(w.l, cell), table, cell);
        __m256 h = NAME(entry)(_mm256_srli_epi32(w.h, 8 * cell), NAME(sign_of)(w.h, cell), table, cell);
        sum->l = less ? _mm256_sub_ps(sum->l, l) : _mm256_add_ps(sum->l, l);
        sum->h = less ? _mm256_sub_ps(sum->h, h) : _mm256_add_ps(sum->h, h);
    }
}
#endif

#else /* portable: vectors of the compiler, which cuts them to what the processor has */

#define TARGET
#define VF NAME(Floats)
#define VU NAME(Words)
typedef float VF __attribute__((vector_size(64)));
typedef uint32_t VU __attribute__((vector_size(64)));
INLINE VF NAME(load_f)(const float *p) {
    VF loaded;
    memcpy(&loaded, p, sizeof loaded);
    return loaded;
}
INLINE VU NAME(load_u)(const uint32_t *p) {
    VU loaded;
    memcpy(&loaded, p, sizeof loaded);
    return loaded;
}
INLINE VF NAME(splat)(float v) { return (VF){v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
INLINE void NAME(store_f)(float *p, VF v) { memcpy(p, &v, sizeof v); }
INLINE VF NAME(add)(VF a, VF b) { return a + b; }
INLINE VF NAME(sub)(VF a, VF b) { return a - b; }
INLINE VF NAME(mul)(VF a, VF b) { return a * b; }
INLINE VF NAME(fma3)(VF s, VF a, VF b) { return s + a * b; }
INLINE VU NAME(xor_u)(VU a, VU b) { return a ^ b; }
INLINE VU NAME(high_nibbles)(VU a) { return a >> 4; }
#define CONVERTED(from, value) \
    float made[LANES]; \
    for (int r = 0; r < LANES; r++) made[r] = value(from[r]); \
    return NAME(load_f)(made)
static VF NAME(load_half)(const uint16_t *p) { CONVERTED(p, half_to_float); }
static VF NAME(load_small)(const int8_t *p) { CONVERTED(p, (float)); }
static VF NAME(load_byte)(const uint8_t *p) { CONVERTED(p, (float)); }
#undef CONVERTED
#if FAST
INLINE void NAME(store_small)(char *to, VF v) {
    VF rounded = (v + 12582912.0f) - 12582912.0f;                  /* 1.5 * 2^23: to the nearest, ties to even */
    for (int r = 0; r < LANES; r++) ((int8_t *)to)[r] = (int8_t)rounded[r];
}
#define SUM NAME(Sum)
typedef struct { int32_t v[LANES]; } SUM;
#define SUM_ZERO {{0}}
#define ENTRY int8_t
INLINE VF NAME(total_of)(SUM s) {
    float made[LANES];
    for (int r = 0; r < LANES; r++) made[r] = (float)s.v[r];
    return NAME(load_f)(made);
}
#else
INLINE VU NAME(and_u)(VU a, uint32_t bits) { return a & bits; }
INLINE VU NAME(shifted)(VU a, int places) { return a >> places; }
INLINE VF NAME(pick)(VU w, int bit, VF zero, VF one) {
    VU all = 0 - (w >> PLACE[bit] & 1);
    return (VF)(((VU)one & all) | ((VU)zero & ~all));
}
INLINE void NAME(store_bfloat)(uint16_t *to, VF value) { /* to the nearest, ties to even */
    VU rounded = ((VU)value + 0x7FFF + ((VU)value >> 16 & 1)) >> 16;
    for (int r = 0; r < LANES; r++) to[r] = (uint16_t)rounded[r];
}
#define SUM NAME(Sum)
typedef struct { float v[LANES]; } SUM;
#define SUM_ZERO {{0}}
#define ENTRY float
INLINE VF NAME(total_of)(SUM s) { return NAME(load_f)(s.v); }
#endif
static __attribute__((noinline)) void NAME(look_up)(VU w, const char *table, SUM *sum, int less) {
    const ENTRY *entries = (const ENTRY *)table;
    uint32_t words[LANES];
    memcpy(words, &w, sizeof words);
    for (int r = 0; r < LANES; r++)
        for (int cell = 0; cell < CELLS; cell++) {
            ENTRY entry = entries[16 * cell + (words[r] >> 8 * cell & 15)];
            sum->v[r] += less ? -entry : entry;
        }
}
#undef ENTRY
#endif

#if PATH < 2
#define splat NAME(splat)
#define load_f NAME(load_f)
#define store_f NAME(store_f)
#define add NAME(add)
#define sub NAME(sub)
#define mul NAME(mul)
#define fma3 NAME(fma3)
#if PATH == 1 && FAST
#define load_u(from) NAME(by_cell)(NAME(load_u)((const uint32_t *)(from)))
#else
#define load_u(from) NAME(load_u)((const uint32_t *)(from))
#endif
#define xor_u NAME(xor_u)
#define high_nibbles NAME(high_nibbles)
#define load_half(from) NAME(load_half)((const uint16_t *)(from))
#define load_small(from) NAME(load_small)((const int8_t *)(from))
#define load_byte(from) NAME(load_byte)((const uint8_t *)(from))
#define and_u NAME(and_u)
#define shifted NAME(shifted)
#define pick NAME(pick)
#define signed_by(w, bit, value) pick(w, bit, sub(splat(0), value), value)
#define scaled_by(w, bit, zero, at_zero, one, at_one) pick(w, bit, mul(zero, splat(at_zero)), mul(one, splat(at_one)))
#if FAST
#define store_small NAME(store_small)
#endif
#if PATH == 0
#define total_of NAME(total_of)
#endif
#endif

#if PATH < 4
typedef SUM NAME(Total);
#endif
#if PATH == 2
INLINE void NAME(look_up)(VU w, const char *table, NAME(Total) *sum, int less) {
    const float *entries = (const float *)table;
    UNROLLED for (int cell = 0; cell < CELLS; cell += 2) {
        VF even = _mm512_permutexvar_ps(_mm512_srli_epi32(w, 8 * cell), load_f(entries + 16 * cell));
        VF odd = _mm512_permutexvar_ps(_mm512_srli_epi32(w, 8 * cell + 8), load_f(entries + 16 * cell + 16));
        sum->even = less ? sub(sum->even, even) : add(sum->even, even);
        sum->odd = less ? sub(sum->odd, odd) : add(sum->odd, odd);
    }
}
#endif

#if PATH < 4
/* sum += what sixteen rows look up in a unit. */
INLINE void NAME(unit)(VU w, const char *table, NAME(Total) *sum) { NAME(look_up)(w, table, sum, 0); }

/* Both planes of a unit: their sum by the first group's table, their difference by the second's. */
INLINE void NAME(unit_pair)(VU w, VU v, const char *one, const char *two, NAME(Total) *both, NAME(Total) *apart) {
#if PATH == 1 && !FAST /* where an entry lies is the same in both tables */
    for (int plane = 0; plane < 2; plane++)
        UNROLLED for (int cell = 0; cell < CELLS; cell++) {
            VU from = plane ? v : w;
            __m256i at = _mm256_srli_epi32(from.l, 8 * cell), sign = NAME(sign_of)(from.l, cell);
            __m256 entry = NAME(entry)(at, sign, two, cell);
            both->l = _mm256_add_ps(both->l, NAME(entry)(at, sign, one, cell));
            apart->l = plane ? _mm256_sub_ps(apart->l, entry) : _mm256_add_ps(apart->l, entry);
            at = _mm256_srli_epi32(from.h, 8 * cell), sign = NAME(sign_of)(from.h, cell);
            entry = NAME(entry)(at, sign, two, cell);
            both->h = _mm256_add_ps(both->h, NAME(entry)(at, sign, one, cell));
            apart->h = plane ? _mm256_sub_ps(apart->h, entry) : _mm256_add_ps(apart->h, entry);
        }
#else
    NAME(look_up)(w, one, both, 0);
    NAME(look_up)(w, two, apart, 0);
    NAME(look_up)(v, one, both, 0);
    NAME(look_up)(v, two, apart, 1);
#endif
}
#endif

#define PARAMETER(place) \
    (layer->small ? load_small((const int8_t *)scale + (place) * LANES) \
                  : load_half((const uint16_t *)scale + (place) * LANES))

INLINE VU NAME(plane)(const uint32_t *words, int64_t u) {
    VU both = load_u(words + u / 2 * LANES);
    return u & 1 ? high_nibbles(both) : both;
}

#if PATH < 4
#if FAST
enum { NAME(ENTRY_BYTES) = 1 };
#define VALUE(sum, index) mul(total_of(sum), splat(lookup->delta[index]))
#else
enum { NAME(ENTRY_BYTES) = 4 };
#define VALUE(sum, index) total_of(sum)
#endif
#define TABLE(index, u) (lookup->table[index] + (u) * UNIT * NAME(ENTRY_BYTES))
/* Tables of the values [units * 16] in units first..last. Values of a table that are not finite make all its sums
   NaN. Below 1e-35 they count as zero, because the inverse of their scale would overflow. */
INLINE void NAME(fill)(const float *values, int64_t first, int64_t last, char *table, float *delta) {
    VF signs[CELLS];
    for (int j = 0; j < CELLS; j++) signs[j] = load_f(SIGN[j]);
#if FAST
    float most = 0, wrong = 0;
#if PATH >= 2
    VF largest = splat(0), off = splat(0);
    for (int64_t c = first * LANES; c < last * LANES; c += LANES) { /* a cell's sum in each of its four lanes */
        VF sum = _mm512_abs_ps(load_f(values + c));
        sum = add(sum, _mm512_permute_ps(sum, 0xB1));
        sum = add(sum, _mm512_permute_ps(sum, 0x4E));
        largest = _mm512_max_ps(largest, sum);
        off = add(off, sub(sum, sum));                             /* NaN for NaN and infinity */
    }
    most = _mm512_reduce_max_ps(largest);
    wrong = _mm512_reduce_add_ps(off);
#else
    for (int64_t c = first * LANES; c < last * LANES; c += CELLS) {
        float sum = __builtin_fabsf(values[c]) + __builtin_fabsf(values[c + 1]) + __builtin_fabsf(values[c + 2]) +
                    __builtin_fabsf(values[c + 3]);
        most = sum > most ? sum : most;
        wrong += sum - sum;                                        /* NaN for NaN and infinity */
    }
#endif
    float inverse = most > 1e-35f && wrong == 0 ? 127.0f / most : 0.0f;
    *delta = wrong != 0 ? wrong : most > 1e-35f ? most / 127.0f : 0.0f;
#else
    *delta = 1;
#endif
    for (int64_t c = first * LANES; c < last * LANES; c += CELLS) {
        VF entries = mul(signs[0], splat(values[c]));
        for (int j = 1; j < CELLS; j++) entries = fma3(entries, signs[j], splat(values[c + j]));
#if FAST
        if (wrong == 0)
            store_small(table + 4 * c, mul(entries, splat(inverse)));
        else
            memset(table + 4 * c, 0, LANES);
#else
        store_f((float *)table + 4 * c, entries);
#endif
    }
}

/* Values times column scales [units * 16] or alone, zero outside first..last, into a table. */
INLINE void NAME(weigh)(const float *x, const uint16_t *scale, int64_t low, int64_t high, int64_t first, int64_t last,
                        float *values, char *table, float *delta) {
    for (int64_t c = low * LANES; c < high * LANES; c += LANES)
        store_f(values + c, scale ? mul(load_f(x + c), load_half(scale + (c - low * LANES))) : load_f(x + c));
    for (int64_t c = low * LANES; c < first && c < high * LANES; c++) values[c] = 0;
    for (int64_t c = last > low * LANES ? last : low * LANES; c < high * LANES; c++) values[c] = 0;
    NAME(fill)(values, low, high, table, delta);
}

/* Everything one token looks up in one block. */
INLINE void NAME(prepare)(const Layer *layer, int64_t block, int64_t tail_unit, const float *x, float *sorted,
                          float *values, Lookup *lookup) {
    int64_t units = layer->units, places = units * LANES, start = layer->start[block], low = start / LANES;
    int64_t main_units = (start + LANES - 1) / LANES;
    const uint16_t *order = layer->order + block * places;
    const uint16_t *column = layer->columns ? layer->column + block * places : NULL;
    lookup->sum = lookup->tail_sum = 0;
    x += block * layer->block_size;
#if PATH >= 2
    for (int64_t c = 0; c < places; c += LANES) {
        __m512i at = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(order + c)));
        __mmask16 there = _mm512_cmpneq_epi32_mask(at, _mm512_set1_epi32(PADDING));
        store_f(sorted + c, _mm512_mask_i32gather_ps(splat(0), there, at, x, 4));
    }
#else
    for (int64_t c = 0; c < places; c++) sorted[c] = order[c] == PADDING ? 0 : x[order[c]];
#endif
    if (layer->means || layer->main_kind == INTEGER) { /* nobody else asks for them */
        for (int64_t c = 0; c < start; c++) lookup->sum += sorted[c];
        for (int64_t c = start; c < places; c++) lookup->tail_sum += sorted[c];
    }
    int64_t across = layer->blocks * places;
    int paired = layer->main_kind == SPLIT;
    for (int g = 0; g < (paired ? 2 : 1); g++) {
        NAME(weigh)(sorted, column ? column + g * across : NULL, 0, main_units, 0, start, values, lookup->table[g],
                    &lookup->delta[g]);
        if (layer->tail_kind == NONE || low == units || (g && layer->tail_kind == ONE)) continue;
        NAME(weigh)(sorted, column ? column + g * across + low * LANES : NULL, low, units, start, places, values,
                    lookup->table[2 + g], &lookup->delta[2 + g]);
    }
    if (layer->tail_kind == NONE || low == units || !paired) return;
    for (int g = 0; g < (layer->tail_kind == SPLIT ? 2 : 1); g++) {
        const uint16_t *second = layer->second_columns ? layer->second_column + tail_unit * LANES : NULL;
        NAME(weigh)(sorted, second ? second + g * layer->tail_units * LANES : NULL, low, units, start, places, values,
                    lookup->table[4 + g], &lookup->delta[4 + g]);
    }
}

/* y [16] += the product of one tile of one block with one token. `second` is the tile's in the first dword. */
INLINE void NAME(tile)(const Layer *layer, const Lookup *lookup, int64_t start, int64_t tail_unit,
                       const uint32_t *words, const uint32_t *second, const void *scale, const uint8_t *zero,
                       float *y) {
    int64_t units = layer->units, main_units = (start + LANES - 1) / LANES, low = start / LANES;
    const uint32_t *other = words + units / 2 * LANES;
    int64_t mean = layer->slots + layer->residuals;
    VF total = load_f(y), halved = splat(0.5f);
    NAME(Total) a = SUM_ZERO, b = SUM_ZERO, c = SUM_ZERO;
    switch (layer->main_kind) {
        case ONE:
            for (int64_t u = 0; u < main_units; u++) NAME(unit)(NAME(plane)(words, u), TABLE(0, u), &a);
            total = fma3(total, PARAMETER(0), VALUE(a, 0));
            if (layer->means) total = fma3(total, PARAMETER(mean), splat(lookup->sum));
            break;
        case SHARED:
            for (int64_t u = 0; u < main_units; u++) {
                VU w = NAME(plane)(words, u), v = NAME(plane)(other, u);
                NAME(unit)(w, TABLE(0, u), &a);
                NAME(unit)(v, TABLE(0, u), &b);
                if (layer->means) NAME(unit)(xor_u(w, v), TABLE(0, u), &c); /* +1 where the group bit is set */
            }
            total = fma3(total, mul(halved, PARAMETER(0)), add(VALUE(a, 0), VALUE(b, 0)));
            total = fma3(total, mul(halved, PARAMETER(1)), sub(VALUE(a, 0), VALUE(b, 0)));
            if (layer->means) {
                VF sum = splat(lookup->sum);
                total = fma3(total, mul(halved, PARAMETER(mean)), sub(sum, VALUE(c, 0)));
                total = fma3(total, mul(halved, PARAMETER(mean + 1)), add(sum, VALUE(c, 0)));
            }
            break;
        case SPLIT:
            for (int64_t u = 0; u < main_units; u += 2) { /* both nibbles of a dword in one round */
                VU w = load_u(words + u / 2 * LANES), v = load_u(other + u / 2 * LANES);
                NAME(unit_pair)(w, v, TABLE(0, u), TABLE(1, u), &a, &b);
                if (u + 1 == main_units) break;
                NAME(unit_pair)(high_nibbles(w), high_nibbles(v), TABLE(0, u + 1), TABLE(1, u + 1), &a, &b);
            }
            total = fma3(total, mul(halved, PARAMETER(0)), VALUE(a, 0));
            total = fma3(total, mul(halved, PARAMETER(1)), VALUE(b, 1));
            break;
        default: { /* level = sum of 2^k (1 + sign) / 2 over the planes k */
            float middle = (float)((1 << layer->planes) - 1) / 2;
            VF sum = mul(sub(splat(middle), load_byte(zero)), splat(lookup->sum));
            for (int64_t plane = 0; plane < layer->planes; plane++) {
                NAME(Total) bits = SUM_ZERO;
                const uint32_t *at = words + plane * units / 2 * LANES;
                for (int64_t u = 0; u < main_units; u++) NAME(unit)(NAME(plane)(at, u), TABLE(0, u), &bits);
                sum = fma3(sum, splat((float)(1 << plane) / 2), VALUE(bits, 0));
            }
            total = fma3(total, PARAMETER(0), sum);
        }
    }
    if (layer->tail_kind != NONE && low < units) {
        NAME(Total) d = SUM_ZERO, e = SUM_ZERO, f = SUM_ZERO, g = SUM_ZERO;
        int64_t step = layer->tiles * LANES, salient = layer->planes == 2 ? 2 : 1, slots = layer->slots;
        int own = layer->main_kind == SPLIT ? 4 : 2; /* the table of the second signs */
        for (int64_t u = low; u < units; u++, tail_unit++) {
            VU w = NAME(plane)(words, u), t = load_u(second + tail_unit / 2 * step);
            if (tail_unit & 1) t = high_nibbles(t);
            if (layer->tail_kind == ONE) {
                NAME(unit)(w, TABLE(2, u), &d);
                NAME(unit)(t, TABLE(own, u), &f);
                continue;
            }
            VU v = NAME(plane)(other, u), s = xor_u(t, xor_u(w, v));
            if (layer->tail_kind == SPLIT) {
                NAME(unit_pair)(w, v, TABLE(2, u), TABLE(3, u), &d, &e);
                NAME(unit_pair)(t, s, TABLE(4, u), TABLE(5, u), &f, &g);
                continue;
            }
            NAME(unit)(w, TABLE(2, u), &d);
            NAME(unit)(v, TABLE(2, u), &e);
            NAME(unit)(t, TABLE(own, u), &f);
            NAME(unit)(s, TABLE(own, u), &g);
        }
        if (layer->tail_kind == ONE) {
            total = fma3(total, PARAMETER(salient), VALUE(d, 2));
            total = fma3(total, PARAMETER(slots), VALUE(f, own));
            if (layer->means) total = fma3(total, PARAMETER(mean + salient), splat(lookup->tail_sum));
        } else {
            int split = layer->tail_kind == SPLIT;
            VF both = VALUE(d, 2), apart = VALUE(e, 2 + split), second_both = VALUE(f, own),
               second_apart = VALUE(g, own + split);
            if (!split) { /* sums of either plane */
                VF first = both;
                both = add(first, apart), apart = sub(first, apart), first = second_both;
                second_both = add(first, second_apart), second_apart = sub(first, second_apart);
            }
            total = fma3(total, mul(halved, PARAMETER(2)), both);
            total = fma3(total, mul(halved, PARAMETER(3)), apart);
            total = fma3(total, mul(halved, PARAMETER(slots)), second_both);
            total = fma3(total, mul(halved, PARAMETER(slots + 1)), second_apart);
        }
    }
    store_f(y, total);
}

#if PATH >= 2
typedef VF NAME(Kept);
INLINE float NAME(across)(VF v) { return _mm512_reduce_add_ps(v); }
/* The inputs of a block, which the indices of kept weights choose from: up to 128 in eight registers. */
typedef struct { VF part[KEPT_BLOCK / LANES]; } NAME(Inputs);
INLINE NAME(Inputs) NAME(inputs_of)(const float *x, int64_t columns) {
    NAME(Inputs) inputs;
    UNROLLED for (int p = 0; p < KEPT_BLOCK / LANES; p++) {
        int64_t left = columns - p * LANES;
        inputs.part[p] = _mm512_maskz_loadu_ps((__mmask16)(left >= LANES ? 0xFFFF : left > 0 ? (1u << left) - 1 : 0),
                                               x + p * LANES);
    }
    return inputs;
}
INLINE void NAME(kept_of)(const NAME(Inputs) *x, const uint8_t *level, const uint8_t *index, int64_t count, float zero,
                          NAME(Kept) *inputs, NAME(Kept) *levels) {
    for (int64_t i = 0; i < count; i += LANES) {
        __mmask16 there = (__mmask16)(count - i < LANES ? (1u << (count - i)) - 1 : 0xFFFF);
        __m512i at = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(index + i)));
        __mmask16 odd = _mm512_test_epi32_mask(at, _mm512_set1_epi32(32));
        __mmask16 upper = _mm512_test_epi32_mask(at, _mm512_set1_epi32(64));
        VF low = _mm512_mask_blend_ps(odd, _mm512_permutex2var_ps(x->part[0], at, x->part[1]),
                                      _mm512_permutex2var_ps(x->part[2], at, x->part[3]));
        VF high = _mm512_mask_blend_ps(odd, _mm512_permutex2var_ps(x->part[4], at, x->part[5]),
                                       _mm512_permutex2var_ps(x->part[6], at, x->part[7]));
        VF input = _mm512_maskz_mov_ps(there, _mm512_mask_blend_ps(upper, low, high));
        *inputs = add(*inputs, input);
        *levels = fma3(*levels, input, sub(load_byte(level + i), splat(zero)));
    }
}
#else
typedef const float *NAME(Inputs);
INLINE NAME(Inputs) NAME(inputs_of)(const float *x, int64_t columns) { (void)columns; return x; }
#if PATH == 1
typedef __m256 NAME(Kept);
INLINE float NAME(across)(__m256 v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
INLINE void NAME(kept_of)(const NAME(Inputs) *x, const uint8_t *level, const uint8_t *index, int64_t count, float zero,
                          NAME(Kept) *inputs, NAME(Kept) *levels) {
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int64_t i = 0; i < count; i += 8) {
        __m256 there = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)(count - i)), lanes));
        __m256i at = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(index + i)));
        __m256 input = _mm256_mask_i32gather_ps(_mm256_setzero_ps(), *x, at, there, 4);
        __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(level + i))));
        *inputs = _mm256_add_ps(*inputs, input);
        *levels = _mm256_fmadd_ps(input, _mm256_sub_ps(value, _mm256_set1_ps(zero)), *levels);
    }
}
#else
typedef float NAME(Kept);
INLINE float NAME(across)(float v) { return v; }
INLINE void NAME(kept_of)(const NAME(Inputs) *x, const uint8_t *level, const uint8_t *index, int64_t count, float zero,
                          NAME(Kept) *inputs, NAME(Kept) *levels) {
    for (int64_t i = 0; i < count; i++) {
        float input = (*x)[index[i]];
        *inputs += input;
        *levels += input * ((float)level[i] - zero);
    }
}
#endif
#endif

/* y [16] += what the kept weights of a tile give one token, less what their signs gave it. */
static TARGET void NAME(kept)(const Layer *layer, int64_t tile, const float *x, float *y) {
    NAME(Kept) inputs[LANES], levels[LANES]; /* sums of x and of (level - zero) x by row, in lanes */
    float input[LANES] = {0}, level[LANES] = {0};
    int64_t next[LANES], first = tile * LANES, rows = layer->rows - first < LANES ? layer->rows - first : LANES;
    const void *scale = scale_of(layer, 0, tile);
    memset(inputs, 0, sizeof inputs);
    memset(levels, 0, sizeof levels);
    for (int64_t r = 0; r < rows; r++) next[r] = layer->kept_start[first + r];
    for (int64_t block = 0; block < layer->kept_blocks; block++) {
        int64_t column = block * layer->block_size, left = layer->width - column;
        NAME(Inputs) here = NAME(inputs_of)(x + column, left < layer->block_size ? left : layer->block_size);
        for (int64_t r = 0; r < rows; r++) {
            int64_t count = layer->kept_count[(first + r) * layer->kept_blocks + block];
            NAME(kept_of)(&here, layer->kept_level + next[r], layer->kept_index + next[r], count,
                          layer->kept_zero[first + r], &inputs[r], &levels[r]);
            next[r] += count;
        }
    }
    for (int64_t r = 0; r < rows; r++) {
        input[r] = NAME(across)(inputs[r]);
        level[r] = NAME(across)(levels[r]);
    }
    VF total = fma3(load_f(y), load_half(layer->kept_scale + first), load_f(level));
    store_f(y, fma3(total, sub(PARAMETER(0), PARAMETER(1)), load_f(input)));
}

static TARGET int NAME(multiply)(const void *data, int64_t first_tile, int64_t last_tile) {
    const Job *job = data;
    const Layer *layer = job->layer;
    enum { TOGETHER = 16, PIECE = 16 }; /* tokens whose tables are kept at once; tiles they meet in turn */
    int64_t tiles = last_tile - first_tile, places = layer->units * LANES;
    int64_t together = job->batch < TOGETHER ? job->batch : TOGETHER;
    size_t table_bytes = (size_t)(layer->units * UNIT * NAME(ENTRY_BYTES));
    size_t sums_bytes = (size_t)(together * tiles * LANES) * sizeof(float), place_bytes = (size_t)places * sizeof(float);
    char *memory = malloc(sums_bytes + 2 * place_bytes + (size_t)together * TABLES * table_bytes + 64);
    if (!memory) return -1;
    char *aligned = memory + (64 - (uintptr_t)memory % 64) % 64;
    float *sums = (float *)aligned, *sorted = (float *)(aligned + sums_bytes), *values = sorted + places;
    char *tables = (char *)(values + places);
    Lookup lookups[TOGETHER];
    for (int64_t token = 0; token < together; token++)
        for (int64_t index = 0; index < TABLES; index++)
            lookups[token].table[index] = tables + (token * TABLES + index) * table_bytes;
    int64_t words_step = layer->planes * layer->units / 2 * LANES;
    for (int64_t first = 0; first < job->batch; first += together) {
        int64_t count = job->batch - first < together ? job->batch - first : together, tail_unit = 0;
        memset(sums, 0, sums_bytes);
        for (int64_t block = 0; block < layer->blocks; block++) {
            int64_t start = layer->start[block];
            for (int64_t token = 0; token < count; token++)
                NAME(prepare)(layer, block, tail_unit, (const float *)job->x + (first + token) * layer->width, sorted, values,
                              &lookups[token]);
            for (int64_t piece = 0; piece < tiles; piece += PIECE) /* its words stay in cache for all tokens */
                for (int64_t token = 0; token < count; token++)
                    for (int64_t tile = piece; tile < tiles && tile < piece + PIECE; tile++) {
                        int64_t at = block * layer->tiles + first_tile + tile;
                        NAME(tile)(layer, &lookups[token], start, tail_unit, layer->words + at * words_step,
                                   layer->second + (first_tile + tile) * LANES,
                                   scale_of(layer, block, first_tile + tile), layer->zero + at * LANES,
                                   sums + (token * tiles + tile) * LANES);
                    }
            tail_unit += layer->units - start / LANES;
        }
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = (first_tile + tile) * LANES, kept = layer->rows - row < LANES ? layer->rows - row : LANES;
            for (int64_t token = 0; token < count; token++) {
                float *sum = sums + (token * tiles + tile) * LANES;
                if (layer->step) store_f(sum, mul(load_f(sum), load_half(layer->step + row)));
                if (layer->kept_blocks)
                    NAME(kept)(layer, first_tile + tile, (const float *)job->x + (first + token) * layer->width, sum);
                memcpy((float *)job->y + (first + token) * layer->rows + row, sum, (size_t)kept * sizeof(float));
            }
        }
    }
    free(memory);
    return 0;
}

#endif /* PATH < 4 */

#if !FAST
INLINE VU NAME(decoded)(VU w) { /* plain bits */
    VU top = and_u(w, 0x88888888u);
    return xor_u(w, xor_u(xor_u(shifted(top, 1), shifted(top, 2)), shifted(top, 3)));
}

/* Row parameters that hold before, and from, the first salient column. */
typedef struct { VF low, high, mean_low, mean_high, second_low, second_high; } NAME(Rows);

INLINE NAME(Rows) NAME(rows_of)(const Layer *layer, const void *scale, VF step, int salient) {
    VF none = splat(0);
    NAME(Rows) rows = {none, none, none, none, none, none};
    if (salient && !layer->residuals) return rows;
    int group = layer->main_kind == SHARED || layer->main_kind == SPLIT, slot = salient ? 1 + group : 0;
    int high = slot + (group && (!salient || layer->slots == 4)); /* otherwise no group bit is set */
    int64_t second = layer->slots, mean = second + layer->residuals;
    rows.low = mul(PARAMETER(slot), step);
    rows.high = mul(PARAMETER(high), step);
    if (layer->means) {
        rows.mean_low = PARAMETER(mean + slot);
        rows.mean_high = PARAMETER(mean + high);
    }
    if (salient) {
        rows.second_low = mul(PARAMETER(second), step);
        rows.second_high = mul(PARAMETER(second + layer->residuals - 1), step);
    }
    return rows;
}

INLINE void NAME(store_as)(void *to, int64_t place, VF value, int bfloat) {
    if (bfloat)
        NAME(store_bfloat)((uint16_t *)to + place * LANES, value);
    else
        store_f((float *)to + place * LANES, value);
}

/* The columns of a unit from j on, before the first salient one or from there on (with second signs t). */
INLINE void NAME(unpack_unit)(int first, int last, VU w, VU high, VU t, const NAME(Rows) *rows, const float *column,
                              int64_t places, int means, int salient, void *to, int bfloat) {
    for (int j = first; j < last; j++) {
        VF value = signed_by(w, j, scaled_by(high, j, rows->low, column[j], rows->high, column[places + j]));
        if (means) value = add(value, pick(high, j, rows->mean_low, rows->mean_high));
        if (salient) {
            const float *second = column + 2 * places;
            value = add(value, signed_by(t, j, scaled_by(high, j, rows->second_low, second[j], rows->second_high,
                                                         second[places + j])));
        }
        NAME(store_as)(to, j, value, bfloat);
    }
}

/* One tile of one block in the order of its places, [places, 16], float or bfloat16. `column`: [4, places]. */
static TARGET void NAME(unpack_tile)(const Layer *layer, int64_t block, int64_t tail_unit, int64_t tile,
                                     const float *column, void *plain, int bfloat) {
    int64_t places = layer->units * LANES, dwords = layer->units / 2;
    int64_t start = layer->start[block], low = start / LANES, at = block * layer->tiles + tile;
    const void *scale = scale_of(layer, block, tile);
    const uint32_t *words = layer->words + at * layer->planes * dwords * LANES;
    VF step = layer->step ? load_half(layer->step + tile * LANES) : splat(1);
    NAME(Rows) rows = NAME(rows_of)(layer, scale, step, 0), salient = NAME(rows_of)(layer, scale, step, 1);
    for (int64_t u = 0; u < layer->units; u++) {
        VU w = NAME(decoded)(NAME(plane)(words, u)), high = xor_u(w, w), t = w;
        const float *here = column + u * LANES;
        void *to = (char *)plain + u * LANES * LANES * (bfloat ? 2 : 4);
        if (layer->main_kind == INTEGER) {
            for (int j = 0; j < LANES; j++) {
                VF value = sub(splat(0), load_byte(layer->zero + at * LANES));
                for (int64_t plane = 0; plane < layer->planes; plane++) {
                    VU bits = NAME(decoded)(NAME(plane)(words + plane * dwords * LANES, u));
                    value = add(value, pick(bits, j, splat(0), splat((float)(1 << plane))));
                }
                NAME(store_as)(to, j, mul(value, rows.low), bfloat);
            }
            continue;
        }
        if (layer->main_kind != ONE) high = xor_u(w, NAME(decoded)(NAME(plane)(words + dwords * LANES, u)));
        int from = u < low ? LANES : (int)(start - low * LANES);
        if (u > low) from = 0;
        if (from == LANES && layer->means)
            NAME(unpack_unit)(0, LANES, w, high, t, &rows, here, places, 1, 0, to, bfloat);
        else if (from == LANES)
            NAME(unpack_unit)(0, LANES, w, high, t, &rows, here, places, 0, 0, to, bfloat);
        else {
            int64_t unit = tail_unit + u - low;
            t = load_u(layer->second + (unit / 2 * layer->tiles + tile) * LANES);
            t = NAME(decoded)(unit & 1 ? high_nibbles(t) : t);
            NAME(unpack_unit)(0, from, w, high, t, &rows, here, places, (int)layer->means, 0, to, bfloat);
            NAME(unpack_unit)(from, LANES, w, high, t, &salient, here, places, (int)layer->means, 1, to, bfloat);
        }
    }
}

#if PATH == 4
/* Two columns in bfloat16, their rows by turns. */
INLINE VU in_turn(VF one, VF two) {
    VU by_turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                   23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(by_turns, (VU)_mm512_cvtne2ps_pbh(two, one));
}

/* Sixteen columns as pairs, [8, 16, 2]; `mixed`: those from `from` on are salient, with second signs t. */
INLINE void pair_unit(int mixed, int from, VU w, VU high, VU t, const NAME(Rows) *plain, const NAME(Rows) *salient,
                      const float *column, int64_t places, uint16_t *to) {
    UNROLLED for (int j = 0; j < LANES / 2; j++) {
        VF value[2];
        UNROLLED for (int half = 0; half < 2; half++) {
            int c = j + 8 * half;
            const NAME(Rows) *rows = mixed && c >= from ? salient : plain;
            value[half] = scaled_by(high, c, rows->low, column[c], rows->high, column[places + c]);
            if (!mixed) continue;
            const float *second = column + 2 * places;
            value[half] = add(signed_by(w, c, value[half]),
                              signed_by(t, c, scaled_by(high, c, rows->second_low, second[c], rows->second_high,
                                                        second[places + c])));
        }
        VU both = in_turn(value[0], value[1]);
        if (!mixed) /* as signed_by, for both */
            both = _mm512_ternarylogic_epi32(both, _mm512_slli_epi32(w, SHIFT[j + 8]),
                                             _mm512_set1_epi32((int)0x80008000u), 0xD2);
        _mm512_storeu_si512(to + 2 * j * LANES, both);
    }
}

/* One tile of one block whose weights are a row mean more or less a row scale, as `interleave` gives it. */
static TARGET void unpack_two_values(const Layer *layer, int64_t block, int64_t tile, uint16_t *pairs) {
    const uint32_t *words = layer->words + (block * layer->tiles + tile) * layer->units / 2 * LANES;
    const void *scale = scale_of(layer, block, tile);
    VF mean = PARAMETER(layer->slots + layer->residuals);
    VU below = in_turn(sub(mean, PARAMETER(0)), sub(mean, PARAMETER(0)));
    VU above = in_turn(add(mean, PARAMETER(0)), add(mean, PARAMETER(0)));
    for (int64_t u = 0; u < layer->units; u++) {
        VU bits = NAME(decoded)(NAME(plane)(words, u));
        UNROLLED for (int j = 0; j < LANES / 2; j++) {
            __mmask32 set = _mm512_test_epi16_mask(bits, _mm512_set1_epi16((short)BIT[j])); /* column j + 8: 16 bits on */
            _mm512_storeu_si512(pairs + (u * LANES + 2 * j) * LANES, _mm512_mask_blend_epi16(set, below, above));
        }
    }
}

/* One tile of one block of integers, as `interleave` gives it. */
static TARGET void unpack_integer_pairs(const Layer *layer, int64_t block, int64_t tile, uint16_t *pairs) {
    int64_t dwords = layer->units / 2, at = block * layer->tiles + tile;
    const uint32_t *words = layer->words + at * layer->planes * dwords * LANES;
    const void *scale = scale_of(layer, block, tile);
    VF step = PARAMETER(0), zero = load_byte(layer->zero + at * LANES);
    for (int64_t u = 0; u < layer->units; u++) {
        VU level[LANES / 2]; /* of columns j and j + 8: the halves of a dword */
        UNROLLED for (int j = 0; j < LANES / 2; j++) level[j] = _mm512_setzero_si512();
        for (int plane = 0; plane < layer->planes; plane++) {
            VU bits = NAME(decoded)(NAME(plane)(words + plane * dwords * LANES, u));
            VU turned = _mm512_rolv_epi32(bits, _mm512_set1_epi32(plane)), kept = _mm512_set1_epi32(0x00010001 << plane);
            UNROLLED for (int j = 0; j < LANES / 2; j++)
                level[j] = _mm512_ternarylogic_epi32(level[j], _mm512_rorv_epi32(turned, _mm512_set1_epi32(PLACE[j])), kept,
                                                     0xF8);
        }
        UNROLLED for (int j = 0; j < LANES / 2; j++) {
            VF low = _mm512_cvtepi32_ps(_mm512_and_si512(level[j], _mm512_set1_epi32(0xFFFF)));
            VF high = _mm512_cvtepi32_ps(_mm512_srli_epi32(level[j], 16));
            _mm512_storeu_si512(pairs + (u * LANES + 2 * j) * LANES,
                                in_turn(mul(sub(low, zero), step), mul(sub(high, zero), step)));
        }
    }
}

/* One tile of one block without row means, as `interleave` gives it. */
static TARGET void unpack_pairs(const Layer *layer, int64_t block, int64_t tail_unit, int64_t tile, const float *column,
                                uint16_t *pairs) {
    int64_t places = layer->units * LANES, dwords = layer->units / 2;
    int64_t start = layer->start[block], low = start / LANES, at = block * layer->tiles + tile;
    const void *scale = scale_of(layer, block, tile);
    const uint32_t *words = layer->words + at * layer->planes * dwords * LANES;
    VF step = layer->step ? load_half(layer->step + tile * LANES) : splat(1);
    NAME(Rows) rows = NAME(rows_of)(layer, scale, step, 0), salient = NAME(rows_of)(layer, scale, step, 1);
    for (int64_t u = 0; u < layer->units; u++) {
        VU w = NAME(decoded)(NAME(plane)(words, u)), high = xor_u(w, w), t = w;
        if (layer->main_kind != ONE) high = xor_u(w, NAME(decoded)(NAME(plane)(words + dwords * LANES, u)));
        const float *here = column + u * LANES;
        uint16_t *to = pairs + u * LANES * LANES;
        int64_t unit = tail_unit + u - low;
        if (u < low) {
            pair_unit(0, 0, w, high, t, &rows, &salient, here, places, to);
            continue;
        }
        t = load_u(layer->second + (unit / 2 * layer->tiles + tile) * LANES);
        t = NAME(decoded)(unit & 1 ? high_nibbles(t) : t);
        pair_unit(1, u > low ? 0 : (int)(start - low * LANES), w, high, t, &rows, &salient, here, places, to);
    }
}
#endif

/* The kept weights of one tile of one block into [places, 16] or pairs; where there are any, a place is a column. */
static TARGET void NAME(put_kept)(const Layer *layer, int64_t block, int64_t tile, int64_t *next, void *to, int as) {
    float scale[LANES];
    store_f(scale, load_half(layer->kept_scale + tile * LANES));
    for (int64_t r = 0; r < LANES && tile * LANES + r < layer->rows; r++) {
        int64_t row = tile * LANES + r, count = layer->kept_count[row * layer->kept_blocks + block];
        for (int64_t i = 0; i < count; i += LANES) {
            int64_t here = count - i < LANES ? count - i : LANES;
            const uint8_t *index = layer->kept_index + next[r] + i;
            VF level = load_byte(layer->kept_level + next[r] + i);
            VF value = mul(sub(level, splat(layer->kept_zero[row])), splat(scale[r]));
            float values[LANES];
            uint16_t halves[LANES];
            if (as == FLOAT) store_f(values, value); else NAME(store_bfloat)(halves, value);
            for (int64_t k = 0; k < here; k++) {
                int64_t c = index[k];
                switch (as) {
                    case FLOAT: ((float *)to)[c * LANES + r] = values[k]; break;
                    case BFLOAT16: ((uint16_t *)to)[c * LANES + r] = halves[k]; break;
                    default: ((uint16_t *)to)[(c / LANES * LANES + c % 8 * 2) * LANES + 2 * r + c / 8 % 2] = halves[k];
                }
            }
        }
        next[r] += count;
    }
}

#if PATH < 4
static TARGET int NAME(unpack)(const void *data, int64_t first_tile, int64_t last_tile) {
    const Job *job = data;
    const Layer *layer = job->layer;
    int64_t places = layer->units * LANES, tail_unit = 0, wide = job->last_tile - job->first_tile;
    int64_t bytes = LANES * (job->bfloat ? 2 : 4); /* of a column of a tile */
    int64_t next_bytes = (last_tile - first_tile) * LANES * (int64_t)sizeof(int64_t);
    char *memory = malloc((size_t)(next_bytes + places * (4 * (int64_t)sizeof(float) + bytes)));
    if (!memory) return -1;
    int64_t *next = (int64_t *)memory; /* kept weight of each row */
    float *column = (float *)(memory + next_bytes);
    char *plain = memory + next_bytes + places * 4 * (int64_t)sizeof(float);
    if (layer->kept_blocks) next_kept(layer, first_tile, last_tile, next);
    for (int64_t block = 0; block < layer->blocks; block++) {
        const uint16_t *order = layer->order + block * places;
        column_scales(layer, block, tail_unit, column);
        for (int64_t tile = first_tile; tile < last_tile; tile++) {
            NAME(unpack_tile)(layer, block, tail_unit, tile, column, plain, job->bfloat);
            if (layer->kept_blocks)
                NAME(put_kept)(layer, block, tile, next + (tile - first_tile) * LANES, plain, job->bfloat);
            char *to = (char *)job->dense + (block * layer->block_size * wide + tile - job->first_tile) * bytes;
            for (int64_t c = 0; c < places; c++) { /* sizes the compiler knows make plain moves */
                if (order[c] == PADDING) continue;
                if (job->bfloat)
                    memcpy(to + order[c] * wide * bytes, plain + c * bytes, LANES * 2);
                else
                    memcpy(to + order[c] * wide * bytes, plain + c * bytes, LANES * 4);
            }
        }
        tail_unit += layer->units - layer->start[block] / LANES;
    }
    free(memory);
    return 0;
}
#endif
#endif

#undef NAME
#undef TARGET
#undef VF
#undef VU
#undef BOTH
#undef splat
#undef load_f
#undef store_f
#undef add
#undef sub
#undef mul
#undef fma3
#undef load_u
#undef xor_u
#undef high_nibbles
#undef load_half
#undef load_small
#undef load_byte
#undef store_small
#undef and_u
#undef shifted
#undef pick
#undef signed_by
#undef scaled_by
#undef SUM
#undef SUM_ZERO
#undef total_of
#undef VALUE
#undef TABLE
#undef PARAMETER
#endif
