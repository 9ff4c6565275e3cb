// Losses over sampled items and rows of a softmax on a CPU: the fast twins of kernels/losses.py.
//
// sampled_loss: each token's scores against its own K negatives are dot products with rows of the item table, read where they
// lie: no [T, K, D] gather is made. A first pass, parallel over tokens, makes scores, the loss, every score's weight (its gradient)
// and the queries' gradient, while the K rows are still in the cache. A second pass adds weight * query to the rows of the table's
// gradient, parallel over rows: each thread walks all weights and takes those of its own rows, so there is neither a scatter with
// atomics nor a buffer a thread, and the sums have the same order with any number of threads.
//
// exp_rows_: maximum, exp and sum of each row of a block of logits, in place: one read and one write.
//
// count_rows: how many scores of each row are above a given one and how many equal it, in one read, where torch makes four passes.
//
// unit_rows: each row divided by its length, and the gradient of that: one pass each over a table, where torch makes ten.
#include "cpu.h"

namespace {

constexpr float NEVER = -1e30f;  // the score of a negative that is the target

// One row of width floats as n vectors. The last one overlaps the one before; whoever multiplies keeps zeros in the lanes that
// were counted already, so no row is padded and nothing behind it is read.
struct Row {
  int64_t width, n, last;

  explicit Row(int64_t width) : width(width), n(std::max<int64_t>(1, up(width, LANES) / LANES)), last(std::max<int64_t>(0, width - LANES)) {}
  int64_t at(int64_t v) const { return v + 1 == n ? last : v * LANES; }
  V get(const float* row, int64_t v) const {
    if (width >= LANES) return load(row + at(v));
    V x = {};
    std::memcpy(&x, row, width * sizeof(float));
    return x;
  }
  void put(float* row, int64_t v, V x) const {
    if (width >= LANES) store(row + at(v), x);
    else std::memcpy(row, &x, width * sizeof(float));
  }
  // The row times a factor, with zeros in the overlapping lanes.
  void prepare(const float* row, float factor, V* out) const {
    for (int64_t v = 0; v < n; v++) out[v] = get(row, v) * factor;
    if (n > 1)
      for (int64_t l = 0; l < n * LANES - width; l++) out[n - 1][l] = 0;
  }
};

// The lane sums of as many vectors as a vector has lanes, as one vector.
inline V totals(V* x) {
#if LARGEREC_LANES == 16
  for (int i = 0; i < 8; i++)
    x[i] = LARGEREC_SHUFFLE(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           LARGEREC_SHUFFLE(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    x[i] = LARGEREC_SHUFFLE(x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           LARGEREC_SHUFFLE(x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    x[i] = LARGEREC_SHUFFLE(x[i], x[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           LARGEREC_SHUFFLE(x[i], x[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return LARGEREC_SHUFFLE(x[0], x[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         LARGEREC_SHUFFLE(x[0], x[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#else
  for (int i = 0; i < 4; i++)
    x[i] = LARGEREC_SHUFFLE(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) + LARGEREC_SHUFFLE(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  for (int i = 0; i < 2; i++)
    x[i] = LARGEREC_SHUFFLE(x[i], x[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) + LARGEREC_SHUFFLE(x[i], x[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  return LARGEREC_SHUFFLE(x[0], x[1], 0, 8, 2, 10, 4, 12, 6, 14) + LARGEREC_SHUFFLE(x[0], x[1], 1, 9, 3, 11, 5, 13, 7, 15);
#endif
}

struct Sampled {
  Row row;
  int64_t tokens, negatives;
  const float *queries, *keys;
  const int64_t *target, *items;
  const float* log_q;  // [V] or null
  bool softmax;
  float power;  // of the positive's probability, for the binary losses
};

// N: vectors a row, known to the compiler; 0 for any number.
template <int N>
void scores_of(const Sampled& p, const int64_t* items, int64_t count, const V* q, float* score) {
  const int64_t n = N ? N : p.row.n;
  for (int64_t k = 0; k < count; k += LANES) {
    V sums[LANES];
    for (int64_t l = 0; l < LANES; l++) {
      const float* key = p.keys + items[std::min(k + l, count - 1)] * p.row.width;
      V sum = p.row.get(key, 0) * q[0];
      for (int64_t v = 1; v < n; v++) sum += p.row.get(key, v) * q[v];
      sums[l] = sum;
    }
    store(score + k, totals(sums));
  }
}

inline float softplus(float x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

// From scores to weights (gradients of the loss by each score), in place; returns the loss and the weight of the target.
float weights_of(const Sampled& p, const int64_t* items, int64_t target, float own, float* score, float* own_weight) {
  const int64_t padded = up(p.negatives, LANES);
  int64_t draws = p.negatives;
  for (int64_t k = 0; k < p.negatives; k++) {
    const bool hit = items[k] == target;
    draws -= hit;
    score[k] = hit ? NEVER : p.log_q ? score[k] - p.log_q[items[k]] : score[k];
  }
  std::fill(score + p.negatives, score + padded, NEVER);
  if (!p.softmax) {
    V loss = {};
    for (int64_t k = 0; k < padded; k += LANES) {
      const V s = load(score + k), other = s <= all(NEVER / 2) ? V{} : all(1.0f);
      const V away = exp(s > V{} ? -s : s);  // softplus(s) = max(s, 0) + log(1 + exp(-|s|))
      store(score + k, other * (s > V{} ? all(1.0f) / (away + 1.0f) : away / (away + 1.0f)));
      for (int64_t l = 0; l < LANES; l++) loss[l] += other[l] * (std::max(s[l], 0.0f) + std::log1p(away[l]));
    }
    *own_weight = -p.power / (1 + std::exp(own));
    return total(loss) + p.power * softplus(-own);
  }
  if (p.log_q) {  // renormalises q over the items that are not the target; see objectives.Objective
    const float q = std::min(std::exp(p.log_q[target]), 1 - 1e-6f);
    own -= std::log1p(-q) - std::log(static_cast<float>(std::max<int64_t>(draws, 1)));
  }
  V top = all(own);
  for (int64_t k = 0; k < padded; k += LANES) {
    const V s = load(score + k);
    top = s > top ? s : top;
  }
  const float most = highest(top);
  V sum = {};
  for (int64_t k = 0; k < padded; k += LANES) {
    const V s = load(score + k), e = s <= all(NEVER / 2) ? V{} : exp(s - most);  // a score that is not a number stays one
    store(score + k, e);
    sum += e;
  }
  const float own_share = std::exp(own - most), whole = total(sum) + own_share;
  for (int64_t k = 0; k < padded; k += LANES) store(score + k, load(score + k) * (1 / whole));
  *own_weight = own_share / whole - 1;
  return std::log(whole) + most - own;
}

template <int N>
void tokens_pass(const Sampled& p, int64_t begin, int64_t end, float* loss, float* d_queries, float* weight, float* own_weight) {
  const int64_t n = N ? N : p.row.n, width = p.row.width;
  std::vector<float> score(up(p.negatives, LANES));
  std::vector<V> query(n), sum(n);
  for (int64_t t = begin; t < end; t++) {
    const int64_t* items = p.items + t * p.negatives;
    p.row.prepare(p.queries + t * width, 1, query.data());
    const float* own_key = p.keys + p.target[t] * width;
    V own = {};
    for (int64_t v = 0; v < n; v++) own += p.row.get(own_key, v) * query[v];
    scores_of<N>(p, items, p.negatives, query.data(), score.data());
    loss[t] = weights_of(p, items, p.target[t], total(own), score.data(), own_weight + t);
    p.row.prepare(own_key, own_weight[t], sum.data());
    V sums[N ? N : 1];
    V* s = N ? sums : sum.data();
    if (N)
      for (int64_t v = 0; v < n; v++) sums[v] = sum[v];
    for (int64_t k = 0; k < p.negatives; k++) {
      const float* row = p.keys + items[k] * width;
      const float w = score[k];
      for (int64_t v = 0; v < n; v++) s[v] += p.row.get(row, v) * w;
    }
    // The lanes that overlap hold the same sums twice but for the target's share, which was left out of the last vector there.
    float* out = d_queries + t * width;
    p.row.put(out, n - 1, s[n - 1]);
    for (int64_t v = 0; v + 1 < n; v++) p.row.put(out, v, s[v]);
    std::copy(score.data(), score.data() + p.negatives, weight + t * p.negatives);
  }
}

// Adds weight * query to the gradient's rows of one part: blocks of 64 rows, dealt out in turn.
template <int N>
void rows_pass(const Sampled& p, int64_t part, int64_t parts, const float* weight, const float* own_weight, float* d_keys) {
  const int64_t n = N ? N : p.row.n, width = p.row.width;
  std::vector<V> query(n), sum(n);
  std::vector<int64_t> mine(p.negatives);
  const float share = 1.0f / static_cast<float>(p.tokens);
  auto belongs = [&](int64_t item) { return static_cast<uint32_t>(item >> 6) % static_cast<uint32_t>(parts) == static_cast<uint32_t>(part); };
  for (int64_t t = 0; t < p.tokens; t++) {
    p.row.prepare(p.queries + t * width, share, query.data());
    const int64_t* items = p.items + t * p.negatives;
    auto add = [&](int64_t item, float w) {
      float* row = d_keys + item * width;
      // All is read before anything is written, and the last vector, whose overlapping lanes get nothing, is written first.
      V old[N ? N : 1];
      V* x = N ? old : sum.data();
      for (int64_t v = 0; v < n; v++) x[v] = p.row.get(row, v) + query[v] * w;
      p.row.put(row, n - 1, x[n - 1]);
      for (int64_t v = 0; v + 1 < n; v++) p.row.put(row, v, x[v]);
    };
    if (belongs(p.target[t])) add(p.target[t], own_weight[t]);
    int64_t count = 0;
    for (int64_t k = 0; k < p.negatives; k++) {
      mine[count] = k;
      count += parts == 1 || belongs(items[k]);
    }
    for (int64_t c = 0; c < count; c++) add(items[mine[c]], weight[t * p.negatives + mine[c]]);
  }
}

#define LARGEREC_BY_VECTORS(N, CALL) \
  switch (N) { \
    case 1: { constexpr int VECTORS = 1; CALL; break; } \
    case 2: { constexpr int VECTORS = 2; CALL; break; } \
    case 4: { constexpr int VECTORS = 4; CALL; break; } \
    case 8: { constexpr int VECTORS = 8; CALL; break; } \
    default: { constexpr int VECTORS = 0; CALL; } \
  }

std::tuple<at::Tensor, at::Tensor, at::Tensor> sampled_loss(const at::Tensor& queries_, const at::Tensor& keys_, const at::Tensor& target_,
                                                            const at::Tensor& items_, const std::optional<at::Tensor>& log_q_, bool softmax,
                                                            double power) {
  const at::Tensor queries = queries_.contiguous(), keys = keys_.contiguous(), target = target_.contiguous(), items = items_.contiguous();
  TORCH_CHECK(queries.dim() == 2 && keys.dim() == 2 && queries.size(1) == keys.size(1), "queries must be [T, D] and keys [V, D]");
  TORCH_CHECK(queries.scalar_type() == at::kFloat && keys.scalar_type() == at::kFloat, "queries and keys must be float32");
  TORCH_CHECK(target.scalar_type() == at::kLong && items.scalar_type() == at::kLong, "targets and negatives must be int64");
  TORCH_CHECK(items.dim() == 2 && items.size(0) == queries.size(0) && target.numel() == queries.size(0), "negatives must be [T, K] and targets [T]");
  const at::Tensor log_q = log_q_ ? log_q_->to(at::kFloat).contiguous() : at::Tensor();
  TORCH_CHECK(!log_q_ || log_q.numel() == keys.size(0), "log q must be [V]");
  const int64_t tokens = queries.size(0), negatives = items.size(1);
  at::Tensor loss = at::zeros({tokens}, queries.options()), d_queries = at::zeros_like(queries), d_keys = at::zeros_like(keys);
  if (tokens == 0 || queries.size(1) == 0) return {loss.sum(), d_queries, d_keys};
  // Rows that start and end with a cache line are read and written in fewer pieces; a copy of the table pays where each is used often.
  const int64_t width = queries.size(1), extra = up(width, LANES) - width;
  if (extra && tokens * negatives > 4 * keys.size(0)) {
    const auto [mean, d_wide, d_table] = sampled_loss(at::constant_pad_nd(queries, {0, extra}), at::constant_pad_nd(keys, {0, extra}), target, items,
                                                      log_q_, softmax, power);
    return {mean, d_wide.narrow(1, 0, width).contiguous(), d_table.narrow(1, 0, width).contiguous()};
  }
  const auto in_range = [&](const at::Tensor& x) { return x.numel() == 0 || (x.min().item<int64_t>() >= 0 && x.max().item<int64_t>() < keys.size(0)); };
  TORCH_CHECK_INDEX(in_range(target) && in_range(items), "an item is outside the table");
  at::Tensor weight = at::empty({tokens, negatives}, queries.options()), own_weight = at::empty({tokens}, queries.options());
  const Sampled p{Row(queries.size(1)), tokens, negatives, queries.data_ptr<float>(), keys.data_ptr<float>(), target.data_ptr<int64_t>(),
                  items.data_ptr<int64_t>(), log_q_ ? log_q.data_ptr<float>() : nullptr, softmax, static_cast<float>(power)};
  at::parallel_for(0, tokens, 64, [&](int64_t begin, int64_t end) {
    LARGEREC_BY_VECTORS(p.row.n, (tokens_pass<VECTORS>(p, begin, end, loss.data_ptr<float>(), d_queries.data_ptr<float>(), weight.data_ptr<float>(),
                                                       own_weight.data_ptr<float>())));
  });
  const int64_t parts = at::get_num_threads();
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; part++)
      LARGEREC_BY_VECTORS(p.row.n, (rows_pass<VECTORS>(p, part, parts, weight.data_ptr<float>(), own_weight.data_ptr<float>(), d_keys.data_ptr<float>())));
  });
  return {loss.mean(), d_queries.div_(static_cast<double>(tokens)), d_keys};
}

template <typename T>
void exp_row(T* row, int64_t columns, const T* factor, float own, bool with_own, float* largest, float* sum) {
  const int64_t whole = columns / LANES * LANES;
  V top = all(with_own ? own : -INFINITY);
  for (int64_t j = 0; j < whole; j += LANES) {
    const V x = load(row + j);
    top = x > top ? x : top;
  }
  float most = highest(top);
  for (int64_t j = whole; j < columns; j++) most = std::max(most, static_cast<float>(row[j]));
  V part = {};
  for (int64_t j = 0; j < whole; j += LANES) {
    V e = exp(load(row + j) - most);
    if (factor) e *= load(factor + j);
    store(row + j, e);
    part += load(row + j);  // what is summed is what was kept
  }
  float rest = 0;
  for (int64_t j = whole; j < columns; j++) {
    float e = std::exp(static_cast<float>(row[j]) - most);
    if (factor) e *= static_cast<float>(factor[j]);
    row[j] = static_cast<T>(e);
    rest += static_cast<float>(row[j]);
  }
  *largest = most;
  *sum = total(part) + rest;
}

std::tuple<at::Tensor, at::Tensor> exp_rows_(at::Tensor& logits, const std::optional<at::Tensor>& factor_, const std::optional<at::Tensor>& own_) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(), "logits must be a contiguous [C, K]");
  const int64_t rows = logits.size(0), columns = logits.size(1);
  const at::Tensor factor = factor_ ? factor_->to(logits.scalar_type()).contiguous() : at::Tensor();
  const at::Tensor own = own_ ? own_->to(at::kFloat).contiguous() : at::Tensor();
  TORCH_CHECK(!factor_ || factor.numel() == columns, "factors must be [K]");
  TORCH_CHECK(!own_ || own.numel() == rows, "own scores must be [C]");
  at::Tensor largest = at::empty({rows}, logits.options().dtype(at::kFloat)), sum = at::empty_like(largest);
  LARGEREC_FLOAT_TYPES(logits.scalar_type(), "largerec::exp_rows_", [&] {
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++)
        exp_row(logits.data_ptr<scalar_t>() + r * columns, columns, factor_ ? factor.data_ptr<scalar_t>() : nullptr,
                own_ ? own.data_ptr<float>()[r] : 0.0f, own_.has_value(), largest.data_ptr<float>() + r, sum.data_ptr<float>() + r);
    });
  });
  return {largest, sum};
}

std::tuple<at::Tensor, at::Tensor> count_rows(const at::Tensor& scores_, const at::Tensor& own_) {
  const at::Tensor scores = scores_.contiguous(), own = own_.contiguous();
  TORCH_CHECK(scores.dim() == 2 && scores.scalar_type() == at::kFloat && own.scalar_type() == at::kFloat, "scores must be float32 [Q, V]");
  const int64_t rows = scores.size(0), columns = scores.size(1);
  TORCH_CHECK(own.numel() == rows, "own scores must be [Q]");
  at::Tensor above = at::empty({rows}, scores.options().dtype(at::kLong)), equal = at::empty_like(above);
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
      const float *row = scores.data_ptr<float>() + r * columns, mine = own.data_ptr<float>()[r];
      VI above_lanes = {}, equal_lanes = {};  // a comparison that holds is -1
      int64_t at = 0, many = 0, same = 0;
      for (; at + LANES <= columns; at += LANES) {
        const V x = load(row + at);
        above_lanes -= x > all(mine);
        equal_lanes -= x == all(mine);
      }
      for (; at < columns; at++) many += row[at] > mine, same += row[at] == mine;
      for (int l = 0; l < LANES; l++) many += above_lanes[l], same += equal_lanes[l];
      above.data_ptr<int64_t>()[r] = many;
      equal.data_ptr<int64_t>()[r] = same;
    }
  });
  return {above, equal};
}

constexpr float SHORTEST = 1e-12f;  // a row shorter than this is divided by it, as torch does

std::tuple<at::Tensor, at::Tensor> unit_rows(const at::Tensor& rows_) {
  const at::Tensor rows = rows_.contiguous();
  TORCH_CHECK(rows.dim() == 2 && rows.scalar_type() == at::kFloat, "rows must be float32 [V, D]");
  const Row row(rows.size(1));
  at::Tensor unit = at::empty_like(rows), length = at::empty({rows.size(0)}, rows.options());
  at::parallel_for(0, rows.size(1) ? rows.size(0) : 0, 64, [&](int64_t begin, int64_t end) {
    std::vector<V> x(row.n);
    for (int64_t v = begin; v < end; v++) {
      const float* in = rows.data_ptr<float>() + v * row.width;
      row.prepare(in, 1, x.data());
      V sum = {};
      for (int64_t i = 0; i < row.n; i++) sum += x[i] * x[i];
      const float size = std::sqrt(total(sum));
      length.data_ptr<float>()[v] = size;
      for (int64_t i = 0; i < row.n; i++) row.put(unit.data_ptr<float>() + v * row.width, i, row.get(in, i) / std::max(size, SHORTEST));
    }
  });
  return {unit, length};
}

// (g - y (g . y)) / |x|; a row that was too short to matter was divided by a constant.
at::Tensor unit_rows_backward(const at::Tensor& gradient_, const at::Tensor& unit, const at::Tensor& length) {
  const at::Tensor gradient = gradient_.contiguous();
  TORCH_CHECK(gradient.sizes() == unit.sizes() && gradient.scalar_type() == at::kFloat, "the gradient must be float32, of the rows' shape");
  const Row row(unit.size(1));
  at::Tensor out = at::empty_like(gradient);
  at::parallel_for(0, unit.size(1) ? unit.size(0) : 0, 64, [&](int64_t begin, int64_t end) {
    std::vector<V> y(row.n);
    for (int64_t v = begin; v < end; v++) {
      const float *g = gradient.data_ptr<float>() + v * row.width, *u = unit.data_ptr<float>() + v * row.width;
      const float size = length.data_ptr<float>()[v];
      row.prepare(u, 1, y.data());
      V sum = {};
      for (int64_t i = 0; i < row.n; i++) sum += row.get(g, i) * y[i];
      const float along = size > SHORTEST ? total(sum) : 0.0f, by = std::max(size, SHORTEST);
      for (int64_t i = 0; i < row.n; i++) row.put(out.data_ptr<float>() + v * row.width, i, (row.get(g, i) - row.get(u, i) * along) / by);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(largerec, m) {
  m.def(
      "sampled_loss(Tensor queries, Tensor keys, Tensor target, Tensor items, Tensor? log_q, bool softmax, float power) -> "
      "(Tensor, Tensor, Tensor)");
  m.def("exp_rows_(Tensor(a!) logits, Tensor? factor, Tensor? own) -> (Tensor, Tensor)");
  m.def("count_rows(Tensor scores, Tensor own) -> (Tensor, Tensor)");
  m.def("unit_rows(Tensor rows) -> (Tensor, Tensor)");
  m.def("unit_rows_backward(Tensor gradient, Tensor unit, Tensor length) -> Tensor");
}

TORCH_LIBRARY_IMPL(largerec, CPU, m) {
  m.impl("sampled_loss", sampled_loss);
  m.impl("exp_rows_", exp_rows_);
  m.impl("count_rows", count_rows);
  m.impl("unit_rows", unit_rows);
  m.impl("unit_rows_backward", unit_rows_backward);
}
