/* Intel's matrix unit in plain C, for processors without one: what cpu.c does with it can then be tested. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

static _Thread_local struct { unsigned char row[16][64]; } emulated[8];

static inline float emulated_float(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline void emulated_product(int sum, int a, int b) {
    for (int m = 0; m < 16; m++) {
        float line[16];
        memcpy(line, emulated[sum].row[m], 64);
        for (int k = 0; k < 32; k++) {
            uint16_t left, right;
            memcpy(&left, emulated[a].row[m] + 2 * k, 2);
            for (int n = 0; n < 16; n++) {
                memcpy(&right, emulated[b].row[k / 2] + 4 * n + 2 * (k % 2), 2);
                line[n] += emulated_float(left) * emulated_float(right);
            }
        }
        memcpy(emulated[sum].row[m], line, 64);
    }
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_loadd(tile, from, stride) \
    do { for (int m_ = 0; m_ < 16; m_++) memcpy(emulated[tile].row[m_], (const char *)(from) + m_ * (stride), 64); } while (0)
#define _tile_stored(tile, to, stride) \
    do { for (int m_ = 0; m_ < 16; m_++) memcpy((char *)(to) + m_ * (stride), emulated[tile].row[m_], 64); } while (0)
#define _tile_dpbf16ps(sum, a, b) emulated_product(sum, a, b)
#define LOAD_CONFIGURATION(tiles) \
    do { \
        struct { unsigned char byte[64]; } seen_; \
        __asm__ volatile("vmovdqu64 %1, %%zmm0\n\tvmovdqu64 %%zmm0, %0" : "=m"(seen_) : "m"(tiles) : "xmm0"); \
        if (seen_.byte[0] != 1) __builtin_trap(); \
        for (int t_ = 0; t_ < 8; t_++) \
            if (seen_.byte[16 + 2 * t_] != 64 || seen_.byte[17 + 2 * t_] || seen_.byte[48 + t_] != 16) __builtin_trap(); \
    } while (0)
#define _tile_release() ((void)0)
#define HAS_MATRIX_UNIT 1
