// What the compiled kernels share: vectors of as many floats as a register holds, exp, and one matrix micro-kernel.
//
// C[8 x 32] += A[8 x depth] B[depth x 32], with any strides for A, on GCC's portable vectors. They must not be wider than the
// machine's: GCC cuts a wider one into pieces, but keeps it in memory, and every sum is then loaded and stored at every step.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#ifndef _OPENMP
#error "compile with -fopenmp: without it at::parallel_for runs on one thread and says nothing"
#endif

#define LARGEREC_FLOAT_TYPES(TYPE, NAME, ...) \
  AT_DISPATCH_SWITCH(TYPE, NAME, AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))

namespace {

#ifdef __AVX512F__
#define LARGEREC_LANES 16
#else
#define LARGEREC_LANES 8
#endif
typedef float V __attribute__((vector_size(4 * LARGEREC_LANES), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(4 * LARGEREC_LANES), aligned(4), may_alias));
constexpr int64_t LANES = LARGEREC_LANES, TILE_ROWS = 8, TILE_COLUMNS = 32;
constexpr int64_t PART_ROWS = LANES == 16 ? 8 : 4, PART_COLUMNS = 2 * LANES;  // of a tile: what the registers hold

#if defined(__clang__) || __GNUC__ >= 12
#define LARGEREC_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LARGEREC_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VI{__VA_ARGS__})
#endif

inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
inline V all(float x) { return V{} + x; }
inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
inline float total(V v) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}
inline float highest(V v) {
  float most = v[0];
  for (int i = 1; i < LANES; i++) most = std::max(most, v[i]);
  return most;
}

// bfloat16 is the upper half of a float; to it, round to nearest even.
typedef uint16_t VH __attribute__((vector_size(2 * LARGEREC_LANES), aligned(2), may_alias));
typedef uint32_t VU __attribute__((vector_size(4 * LARGEREC_LANES), aligned(4), may_alias));
inline V load(const at::BFloat16* p) {
  VU bits = __builtin_convertvector(*reinterpret_cast<const VH*>(p), VU) << 16;
  return reinterpret_cast<V&>(bits);
}
inline void store(at::BFloat16* p, V v) {
  const VU bits = reinterpret_cast<VU&>(v);
  *reinterpret_cast<VH*>(p) = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, VH);
}

// exp to about 2 ulp: 2^n times a polynomial on [-ln2/2, ln2/2].
inline V exp(V x) {
  const V high = all(88.0f), low = all(-87.0f), magic = all(12582912.0f);
  x = x > high ? high : x;
  x = x < low ? low : x;
  V shifted = x * 1.44269504f + magic;
  V n = shifted - magic;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  V y = p * r * r + r + 1.0f;
  VI power = (reinterpret_cast<VI&>(shifted) - reinterpret_cast<const VI&>(magic)) << 23;
  VI bits = reinterpret_cast<VI&>(y) + power;
  return reinterpret_cast<V&>(bits);
}

// C[PART_ROWS x PART_COLUMNS] (+)= A[PART_ROWS x depth] B[depth x PART_COLUMNS]; A's element (r, k) is a[r * row + k * step].
inline void part(int64_t depth, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  V acc[PART_ROWS][2];
  for (int r = 0; r < PART_ROWS; r++) {
    acc[r][0] = add ? load(c + r * ldc) : V{};
    acc[r][1] = add ? load(c + r * ldc + LANES) : V{};
  }
  for (int64_t k = 0; k < depth; k++) {
    const V b0 = load(b + k * ldb), b1 = load(b + k * ldb + LANES);
#pragma GCC unroll 8
    for (int r = 0; r < PART_ROWS; r++) {
      const V x = all(a[r * row + k * step]);
      acc[r][0] += x * b0;
      acc[r][1] += x * b1;
    }
  }
  for (int r = 0; r < PART_ROWS; r++) {
    store(c + r * ldc, acc[r][0]);
    store(c + r * ldc + LANES, acc[r][1]);
  }
}

// C[8 x 32] (+)= A[8 x depth] B[depth x 32].
inline void tile(int64_t depth, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  for (int64_t j = 0; j < TILE_COLUMNS; j += PART_COLUMNS)
    for (int64_t i = 0; i < TILE_ROWS; i += PART_ROWS) part(depth, a + i * row, row, step, b + j, ldb, c + i * ldc + j, ldc, add);
}

// C[rows x columns] (+)= A B over whole tiles.
inline void product(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb,
                    float* c, int64_t ldc, bool add) {
  for (int64_t j = 0; j < columns; j += TILE_COLUMNS)
    for (int64_t i = 0; i < rows; i += TILE_ROWS) tile(depth, a + i * row, row, step, b + j, ldb, c + i * ldc + j, ldc, add);
}

}  // namespace
