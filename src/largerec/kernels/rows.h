// What the compiled attentions share: buckets of elapsed time, packing, and tasks cut into chunks.
//
// One task is one user and one head; tasks are cut into as many fixed chunks as there are threads, each chunk sums its gradients of
// tables in its own buffer, and the buffers are added in order, so equal thread counts give bitwise equal results.
#pragma once
#include "cpu.h"

namespace {

constexpr int64_t ROWS = 32;            // rows of scores made at a time; histories are padded to whole blocks of rows
constexpr int64_t UNKNOWN_BUCKET = 31;  // reference.UNKNOWN_TIME_BUCKET

constexpr int64_t HALF = LANES / 2;     // doubles of a vector
typedef double VD __attribute__((vector_size(4 * LARGEREC_LANES), aligned(8), may_alias));
typedef int64_t VL __attribute__((vector_size(4 * LARGEREC_LANES), aligned(8), may_alias));
constexpr double NO_TIME = 1e300;

// Times as doubles, which hold milliseconds exactly. An unknown one lies so far away that its exponent tells it from all others.
inline double row_clock(int64_t time) { return time < 0 ? NO_TIME : static_cast<double>(time); }
inline double column_clock(int64_t time) { return time < 0 ? -NO_TIME : static_cast<double>(time); }

// max(1, seconds) from half a vector of columns to a row.
inline VD seconds_since(double row, const double* columns) {
  VD elapsed = row - *reinterpret_cast<const VD*>(columns);
  elapsed = elapsed > 1000.0 ? elapsed : VD{} + 1000.0;
  return elapsed * 0.001;  // exact where it matters: no product of a whole number of milliseconds is rounded across a power of two
}

// floor(log2(max(1, seconds))) is the exponent of a double, in its upper half; unknown times have one above 900.
inline VI buckets_of(double row, const double* columns) {
  VD first = seconds_since(row, columns), second = seconds_since(row, columns + HALF);
  const VI &low = reinterpret_cast<VI&>(first), &high = reinterpret_cast<VI&>(second);
#if LARGEREC_LANES == 16
  const VI upper = LARGEREC_SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
  const VI upper = LARGEREC_SHUFFLE(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
#endif
  const VI exponent = (upper >> 20) - 1023, last_known = VI{} + (static_cast<int32_t>(UNKNOWN_BUCKET) - 1);
  return (exponent > last_known ? last_known : exponent) - (exponent > VI{} + 500);
}

// Entries of a table of 32 floats.
inline V looked_up(const float* table, VI index) {
#if defined(__clang__)
  V x;
  for (int l = 0; l < LANES; l++) x[l] = table[index[l]];
  return x;
#else
  const V low = __builtin_shuffle(load(table), load(table + LANES), index);
  if (LANES == 16) return low;
  const V high = __builtin_shuffle(load(table + 2 * LANES % 32), load(table + 3 * LANES % 32), index);  // an index counts modulo 16
  return index > VI{} + 15 ? high : low;
#endif
}

// Adds a vector of gradients to the sums of their buckets: a sum for each lane of a bucket.
inline void add_by_bucket(V d, VI bucket, bool falling, float* sums) {
  if (falling) {  // times of a history rise, so buckets fall
    for (int b = bucket[0]; b >= bucket[LANES - 1]; b--) {
      const V kept = bucket == VI{} + b ? d : V{};
      store(sums + b * LANES, load(sums + b * LANES) + kept);
    }
    return;
  }
  for (int l = 0; l < LANES; l++) sums[bucket[l] * LANES + l] += d[l];
}

template <typename T>
T* sized(std::vector<T>& buffer, int64_t n) {
  if (static_cast<int64_t>(buffer.size()) < n) buffer.resize(n);
  return buffer.data();
}

template <typename T>
void pack(const T* x, int64_t n, int64_t width, int64_t stride, float* rows, int64_t ld, int64_t n_padded) {
  for (int64_t i = 0; i < n; i++) {
    float* row = rows + i * ld;
    for (int64_t c = 0; c < width; c++) row[c] = static_cast<float>(x[i * stride + c]);
    for (int64_t c = width; c < ld; c++) row[c] = 0;
  }
  std::fill(rows + n * ld, rows + n_padded * ld, 0.0f);
}

void transpose(const float* rows, int64_t ld, int64_t width, int64_t n_padded, float* columns) {
  for (int64_t c = 0; c < width; c++)
    for (int64_t i = 0; i < n_padded; i++) columns[c * n_padded + i] = rows[i * ld + c];
}

template <typename T>
void unpack(const float* rows, int64_t ld, int64_t n, int64_t width, int64_t stride, T* x) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t c = 0; c < width; c++) x[i * stride + c] = static_cast<T>(rows[i * ld + c]);
}

// In the functions of a row, columns behind i are written as zeros up to `padded`; j runs over whole vectors.
inline void clear_behind(float* s, int64_t i, int64_t padded) { std::fill(s + i + 1, s + padded, 0.0f); }

struct Task {
  int64_t user, head;
};

// Tasks cut into chunks of about equal cost, square n^2 + 32 n of a history of n; the cut depends on the shapes and the number of
// threads alone.
inline std::vector<std::vector<Task>> chunks_of(const int64_t* offsets, int64_t users, int64_t heads, double square = 1) {
  const int64_t n_chunks = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), users * heads));
  double whole = 0;
  auto cost = [&](int64_t user) {
    const double n = static_cast<double>(offsets[user + 1] - offsets[user]);
    return square * n * n + 32 * n;
  };
  for (int64_t user = 0; user < users; user++) whole += cost(user) * heads;
  std::vector<std::vector<Task>> chunks(n_chunks);
  double done = 0;
  for (int64_t user = 0; user < users; user++)
    for (int64_t head = 0; head < heads; head++) {
      const int64_t chunk = whole > 0 ? std::min<int64_t>(n_chunks - 1, static_cast<int64_t>(done / whole * n_chunks)) : 0;
      chunks[chunk].push_back({user, head});
      done += cost(user);
    }
  return chunks;
}

// Views into one wide projection are read where they lie: only the heads of a token must lie side by side.
at::Tensor readable(const at::Tensor& x) {
  return x.dim() == 3 && x.stride(2) == 1 && x.stride(1) == x.size(2) ? x : x.contiguous();
}

void check_offsets(const at::Tensor& offsets, int64_t tokens) {
  const int64_t* at = offsets.data_ptr<int64_t>();
  TORCH_CHECK(offsets.numel() >= 1 && at[offsets.numel() - 1] == tokens, "offsets must end at the number of tokens");
  for (int64_t b = 0; b < offsets.numel(); b++)
    TORCH_CHECK(at[b] >= (b ? at[b - 1] : 0) && (b || at[b] == 0), "offsets must start at 0 and not fall");
}

}  // namespace
