// Cross-entropy over the whole catalogue in bfloat16, on CPUs that multiply it in hardware (AVX-512 BF16): the fast twin of
// objectives.full_softmax.
//
// A block of tokens goes through two passes. The first, parallel over tokens, makes a tile of 6 tokens x 64 items of scores, turns
// it into p = exp(score - score of the token's target) while it is in registers, adds p * key to the queries' gradient, and keeps p
// in bfloat16. With the target's own score as the shift no largest score need be known: the loss is log(sum of p), and p leaves
// the range of a float only when another item is far ahead: past a limit the operator stops, and says so. The
// second pass, parallel over items, adds p * query / sum to the keys' gradient. Every sum has a fixed order, whatever the threads.
//
// One micro-kernel does all three products: an instruction multiplies 16 pairs of bfloat16 numbers and adds them to 16 floats, so
// each operand is laid out in pairs along what is summed over: scores along the width, the first gradient along items, the second
// along tokens.
#include "cpu.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

#include <memory>

namespace {

constexpr int64_t ROWS = 6, PANEL = 64, VECTORS = PANEL / LANES;  // a tile: 24 accumulators of 16 floats
constexpr int64_t BLOCK_ELEMENTS = 8000000;                        // of p that are kept at a time, or eight tiles a thread

// 16 pairs of bfloat16, or one pair in a number.
typedef uint32_t Pair;
inline __m512bh pairs(const Pair* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh everywhere(Pair p) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(p)); }

inline Pair rounded(float x) {  // to the nearest bfloat16, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // not a number
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline Pair pair(float low, float high) { return rounded(low) | (rounded(high) << 16); }

// acc[r][p] += sum over k of A(r, k) * B(p, k): A's pair (r, k) is a[r * row + k * step], B's 16 pairs are at b + p * panel + k * next.
template <int R, int P>
inline void multiply(int64_t depth, const Pair* a, int64_t row, int64_t step, const Pair* b, int64_t panel, int64_t next, __m512 (&acc)[R][P]) {
  for (int64_t k = 0; k < depth; k++) {
    __m512bh right[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) right[p] = pairs(b + p * panel + k * next);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512bh left = everywhere(a[r * row + k * step]);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], left, right[p]);
    }
  }
}

// C[R x 16 P] += A B in memory.
template <int R, int P>
inline void add_product(int64_t depth, const Pair* a, int64_t row, int64_t step, const Pair* b, int64_t next, float* c, int64_t ldc) {
  __m512 acc[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) acc[r][p] = _mm512_loadu_ps(c + r * ldc + p * LANES);
  multiply<R, P>(depth, a, row, step, b, LANES, next, acc);
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) _mm512_storeu_ps(c + r * ldc + p * LANES, acc[r][p]);
}

// The same for all columns, four vectors at a time.
template <int R>
void add_products(int64_t columns, int64_t depth, const Pair* a, int64_t row, int64_t step, const Pair* b, int64_t next, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + 4 * LANES <= columns; j += 4 * LANES) add_product<R, 4>(depth, a, row, step, b + j, next, c + j, ldc);
  for (; j < columns; j += LANES) add_product<R, 1>(depth, a, row, step, b + j, next, c + j, ldc);
}

struct Softmax {
  int64_t tokens, items, given, width;  // given: numbers in a row; width: up to whole vectors
  const float *queries, *keys;
  const int64_t* target;
  std::vector<Pair> by_width;  // keys: [panel of 16 items][pair of width][16 items]
  std::vector<Pair> by_item;   // keys: [pair of items][width]
  int64_t panels() const { return up(items, PANEL) / PANEL; }

  void lay_out_keys() {
    const int64_t half = width / 2;
    by_width.assign(panels() * PANEL * half, 0);
    by_item.assign(panels() * PANEL / 2 * width, 0);
    at::parallel_for(0, panels(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t v = begin * PANEL; v < std::min(end * PANEL, items); v++) {
        const float* key = keys + v * given;
        Pair* column = by_width.data() + v / LANES * half * LANES + v % LANES;
        Pair* row = by_item.data() + v / 2 * width;
        const int64_t shift = v % 2 * 16;
        for (int64_t d = 0; d < given; d++) {
          const Pair x = rounded(key[d]);
          column[d / 2 * LANES] |= x << (d % 2 * 16);
          row[d] |= x << shift;
        }
      }
    });
  }
};

// What a block of tokens needs between its passes.
struct Block {
  int64_t first, rows, padded;  // tokens of the block, and up to whole tiles
  std::vector<Pair> query;      // [token][pair of width]
  std::vector<Pair> p;          // [panel][pair of tokens][64 items]
  std::vector<Pair> share;      // query / sum: [pair of tokens][width]
  std::vector<float> gradient, own, sum;
};

inline float wide(Pair rounded) {
  const Pair bits = rounded << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

float score(const Softmax& s, int64_t token) {  // of the target, with both sides rounded as the tiles round them
  const float *q = s.queries + token * s.given, *k = s.keys + s.target[token] * s.given;
  float sum = 0;
  for (int64_t d = 0; d < s.given; d++) sum += wide(rounded(q[d])) * wide(rounded(k[d]));
  return sum;
}

// Scores of a tile to p, in both layouts; adds to the rows' sums and raises the largest score before the shift is taken off.
inline void exponentials(__m512 (&acc)[ROWS][VECTORS], const float* own, int64_t columns, uint16_t (&row)[ROWS][PANEL], Pair* by_token, V* sums, V& ahead) {
  __m256i half[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      const V x = (V)acc[r][v] - own[r];
      const __mmask16 inside = columns >= (v + 1) * LANES ? 0xffff : columns <= v * LANES ? 0 : (1u << (columns - v * LANES)) - 1;
      const V counted = (V)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), inside, (__m512)x);
      ahead = counted > ahead ? counted : ahead;
      half[r][v] = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_mov_ps(inside, (__m512)exp(x)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(row[r] + v * LANES), half[r][v]);
      sums[r] += (V)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half[r][v]), 16));  // what is summed is what was kept
    }
  for (int r = 0; r < ROWS; r += 2)
    for (int v = 0; v < VECTORS; v++) {
      const __m512i low = _mm512_cvtepu16_epi32(half[r][v]), high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half[r + 1][v]), 16);
      _mm512_storeu_si512(by_token + r / 2 * PANEL + v * LANES, _mm512_or_si512(low, high));
    }
}

// First pass over whole tiles of a block's tokens; returns how far any item is ahead of a target.
float tokens_pass(const Softmax& s, Block& b, int64_t first_tile, int64_t last_tile) {
  const int64_t half = s.width / 2, pairs_of_tokens = b.padded / 2;
  const auto sums = std::make_unique<V[]>((last_tile - first_tile) * ROWS);
  V ahead = all(-INFINITY);
  alignas(64) uint16_t row[ROWS][PANEL];
  for (int64_t panel = 0; panel < s.panels(); panel++)
    for (int64_t tile = first_tile; tile < last_tile; tile++) {
      const int64_t t = tile * ROWS;
      __m512 acc[ROWS][VECTORS] = {};
      multiply<ROWS, VECTORS>(half, b.query.data() + t * half, half, 1, s.by_width.data() + panel * PANEL * half, half * LANES, LANES, acc);
      exponentials(acc, b.own.data() + t, s.items - panel * PANEL, row, b.p.data() + (panel * pairs_of_tokens + t / 2) * PANEL,
                   sums.get() + (tile - first_tile) * ROWS, ahead);
      add_products<ROWS>(s.width, PANEL / 2, reinterpret_cast<const Pair*>(row), PANEL / 2, 1, s.by_item.data() + panel * PANEL / 2 * s.width, s.width,
                         b.gradient.data() + t * s.width, s.width);
    }
  for (int64_t t = first_tile * ROWS; t < last_tile * ROWS; t++) b.sum[t] = total(sums[t - first_tile * ROWS]);
  return highest(ahead);
}

// Second pass over some panels of items.
void items_pass(const Softmax& s, const Block& b, int64_t first_panel, int64_t last_panel, float* d_keys) {
  const int64_t depth = b.padded / 2;
  for (int64_t panel = first_panel; panel < last_panel; panel++) {
    const Pair* p = b.p.data() + panel * depth * PANEL;
    float* out = d_keys + panel * PANEL * s.width;
    int64_t v = 0;
    for (; v + ROWS <= PANEL; v += ROWS) add_products<ROWS>(s.width, depth, p + v, 1, PANEL, b.share.data(), s.width, out + v * s.width, s.width);
    add_products<PANEL % ROWS>(s.width, depth, p + v, 1, PANEL, b.share.data(), s.width, out + v * s.width, s.width);
  }
}

void enter(const Softmax& s, Block& b) {
  const int64_t half = s.width / 2;
  std::fill(b.query.begin(), b.query.end(), 0);
  std::fill(b.gradient.begin(), b.gradient.end(), 0.0f);
  std::fill(b.own.begin(), b.own.end(), 0.0f);
  at::parallel_for(0, b.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      const float* q = s.queries + (b.first + t) * s.given;
      for (int64_t d = 0; d < s.given; d++) b.query[t * half + d / 2] |= rounded(q[d]) << (d % 2 * 16);
      b.own[t] = score(s, b.first + t);
    }
  });
}

// Losses and the queries' gradient of a block, what its second pass multiplies by, and what is taken off the target's gradient.
// Both sides of a difference are rounded alike, so that it vanishes with the loss.
void leave(const Softmax& s, Block& b, float* loss, float* d_queries, float* own_share) {
  const float each = 1.0f / static_cast<float>(s.tokens);
  std::fill(b.share.begin(), b.share.end(), 0);  // rows that only fill a tile weigh nothing
  at::parallel_for(0, (b.rows + 1) / 2, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = 2 * begin; t < std::min(2 * end, b.rows); t++) {
      const int64_t token = b.first + t;
      const float *q = s.queries + token * s.given, *own_key = s.keys + s.target[token] * s.given, *sum = b.gradient.data() + t * s.width;
      const float inverse = 1.0f / b.sum[t];
      loss[token] = std::log(b.sum[t]);
      for (int64_t d = 0; d < s.given; d++) {
        const Pair share = rounded(q[d] * inverse * each);
        d_queries[token * s.given + d] = (sum[d] * inverse - wide(rounded(own_key[d]))) * each;
        own_share[token * s.given + d] = wide(share) * b.sum[t];
        b.share[t / 2 * s.width + d] |= share << (t % 2 * 16);
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> softmax_loss(const at::Tensor& queries_, const at::Tensor& keys_, const at::Tensor& target_,
                                                                        double limit) {
  const at::Tensor queries = queries_.contiguous(), keys = keys_.contiguous(), target = target_.contiguous();
  TORCH_CHECK(queries.dim() == 2 && keys.dim() == 2 && queries.size(1) == keys.size(1), "queries must be [T, D] and keys [V, D]");
  TORCH_CHECK(queries.scalar_type() == at::kFloat && keys.scalar_type() == at::kFloat, "queries and keys must be float32");
  TORCH_CHECK(target.scalar_type() == at::kLong && target.numel() == queries.size(0), "targets must be int64 [T]");
  const int64_t tokens = queries.size(0), items = keys.size(0), given = keys.size(1), width = up(given, LANES);
  at::Tensor loss = at::empty({tokens}, queries.options()), d_queries = at::empty_like(queries), ahead = at::full({}, -INFINITY, queries.options());
  at::Tensor d_keys = at::zeros({up(items, PANEL), width}, keys.options()), own_share = at::empty_like(queries);
  if (tokens == 0) return {loss.sum(), d_queries, at::zeros_like(keys), ahead};
  TORCH_CHECK_INDEX(target.min().item<int64_t>() >= 0 && target.max().item<int64_t>() < items, "a target is outside the table");
  Softmax s{tokens, items, given, width, queries.data_ptr<float>(), keys.data_ptr<float>(), target.data_ptr<int64_t>(), {}, {}};
  s.lay_out_keys();
  const int64_t most = std::min(up(tokens, ROWS), up(std::max(BLOCK_ELEMENTS / (s.panels() * PANEL), 8 * ROWS * at::get_num_threads()), ROWS));
  Block b{0, 0, most, std::vector<Pair>(most * width / 2), std::vector<Pair>(s.panels() * most / 2 * PANEL), std::vector<Pair>(most / 2 * width),
          std::vector<float>(most * width), std::vector<float>(most), std::vector<float>(most)};
  for (; b.first < tokens; b.first += most) {
    b.rows = std::min(most, tokens - b.first);
    b.padded = up(b.rows, ROWS);
    enter(s, b);
    std::vector<float> found(b.padded / ROWS, -INFINITY);
    at::parallel_for(0, b.padded / ROWS, 1, [&](int64_t begin, int64_t end) { found[begin] = tokens_pass(s, b, begin, end); });
    ahead.fill_(std::max(ahead.item<float>(), *std::max_element(found.begin(), found.end())));
    if (ahead.item<float>() > limit) return {at::full({}, NAN, queries.options()), d_queries, at::empty_like(keys), ahead};
    leave(s, b, loss.data_ptr<float>(), d_queries.data_ptr<float>(), own_share.data_ptr<float>());
    at::parallel_for(0, s.panels(), 1, [&](int64_t begin, int64_t end) { items_pass(s, b, begin, end, d_keys.data_ptr<float>()); });
  }
  at::Tensor d_items = d_keys.narrow(0, 0, items).narrow(1, 0, given);
  d_items.index_add_(0, target, own_share, -1);
  double mean = 0;  // one after the other: torch's mean depends on the threads
  for (int64_t t = 0; t < tokens; t++) mean += loss.data_ptr<float>()[t];
  return {at::full({}, mean / static_cast<double>(tokens), queries.options()), d_queries, d_items.contiguous(), ahead};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(largerec, m) {
  m.def("softmax_loss(Tensor queries, Tensor keys, Tensor target, float limit) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(largerec, CPU, m) { m.impl("softmax_loss", softmax_loss); }
#endif
