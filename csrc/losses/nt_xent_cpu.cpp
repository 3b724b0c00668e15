// Blocks of similarities: a product of rows with rows, exponentials in place, and the sums or products they are for.
#include "losses/nt_xent.hpp"

#include "core/block_io.hpp"
#include "core/vec_math.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// The sums of kRows rows by two vectors of columns fill the registers, but for the operands.
#if defined(__AVX512F__)
constexpr std::int64_t kWidth = 16, kRows = 12;
#elif defined(__AVX__)
constexpr std::int64_t kWidth = 8, kRows = 6;
#else
constexpr std::int64_t kWidth = 4, kRows = 6;
#endif
using Vector = float __attribute__((vector_size(kWidth * sizeof(float)), may_alias));
static_assert(kTileRows % kRows == 0 && kTileRows % kPanel == 0 && kPanel % (2 * kWidth) == 0, "tiles are whole");

constexpr std::int64_t kDepth = 256;  // of a product at a time: a panel of 32 KiB stays in L1
constexpr std::int64_t kStrip = 32;   // rows whose column sums are taken in float32
constexpr std::int64_t kBlock = 192;  // the largest block
constexpr double kEpsilon = 1e-12;    // as in torch.nn.functional.normalize

inline Vector& at(float* p) { return *reinterpret_cast<Vector*>(p); }
inline const Vector& at(const float* p) { return *reinterpret_cast<const Vector*>(p); }

// A matrix whose element (r, k) is data[r * row + k * column].
struct Left {
  const float* data;
  std::int64_t row, column;
};

// c [kRows, kPanel] = a [kRows, depth] b [depth, kPanel], or with `add` c += that.
void multiply_tile(const Left& a, const float* b, std::int64_t depth, float* c, std::int64_t c_row, bool add) {
  for (std::int64_t part = 0; part < kPanel; part += 2 * kWidth) {
    Vector sum[kRows][2] = {};
    for (std::int64_t k = 0; k < depth; ++k) {
      const float* right = b + k * kPanel + part;
      const float* left = a.data + k * a.column;
      const Vector first = at(right), second = at(right + kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const float x = left[r * a.row];
        sum[r][0] += x * first;
        sum[r][1] += x * second;
      }
    }
    // Added at the end: few additions then meet a sum grown large, and the error stays small.
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < 2; ++v) {
        Vector& out = at(c + r * c_row + part + v * kWidth);
        out = add ? out + sum[r][v] : sum[r][v];
      }
  }
}

// c [rows, columns] = a [rows, depth] b [depth, columns], or with `add` c += that. b comes in panels `panel_size`
// floats apart. Rows and columns are rounded up to whole tiles, for which a, b and c have room.
void multiply(Left a, std::int64_t rows, const float* b, std::int64_t panel_size, std::int64_t columns,
              std::int64_t depth, float* c, std::int64_t c_row, bool add) {
  for (std::int64_t k = 0; k < depth; k += kDepth) {
    const std::int64_t part = depth - k < kDepth ? depth - k : kDepth;
    for (std::int64_t column = 0; column < columns; column += kPanel)
      for (std::int64_t row = 0; row < rows; row += kRows)
        multiply_tile({a.data + row * a.row + k * a.column, a.row, a.column},
                      b + column / kPanel * panel_size + k * kPanel, part, c + row * c_row + column, c_row,
                      add || k > 0);
  }
}

// Block rows I <= J of the similarities, and where in the tile they are.
struct Pair {
  std::int64_t first_i, rows, first_j, columns, padded;
  bool diagonal;
  float* tile;

  float* row(std::int64_t i, std::int64_t block) const { return tile + i * block; }
};

// Calls body(pair) for every block on or above the diagonal, in the order nt_xent.hpp explains.
template <typename Body>
void for_each_pair(const NtXentWork& work, int threads, Body body) {
  const std::int64_t block = work.block, blocks = (work.count + block - 1) / block;
  for (std::int64_t round = 0; round < blocks; ++round) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
      std::int64_t turn = 0;
      for (std::int64_t i = 0; i < blocks; ++i) {
        const std::int64_t j = (round - i + blocks) % blocks;
        if (j < i || turn++ % threads != thread) continue;
        Pair pair = {i * block,
                     work.count - i * block,
                     j * block,
                     work.count - j * block,
                     0,
                     i == j,
                     work.tiles + thread * block * block};
        if (pair.rows > block) pair.rows = block;
        if (pair.columns > block) pair.columns = block;
        pair.padded = (pair.columns + kLanes - 1) / kLanes * kLanes;
        body(pair);
      }
    }
  }
}

// The cosines of a block; a row with itself, and the padding up to whole vectors, take part in no sum.
void cosines(const NtXentWork& work, std::int64_t dim, const Pair& pair) {
  const float* rows = work.rows + pair.first_i * work.padded_dim;
  multiply({rows, work.padded_dim, 1}, pair.rows, work.columns + pair.first_j * dim, dim * kPanel, pair.columns, dim,
           pair.tile, work.block, false);
  for (std::int64_t i = 0; i < pair.rows; ++i) {
    float* row = pair.row(i, work.block);
    for (std::int64_t j = pair.columns; j < pair.padded; ++j) row[j] = -__builtin_inff();
    if (pair.diagonal) row[i] = -__builtin_inff();
  }
}

// Calls body(i, j) for each positive in the block: row i of the tile, column j.
template <typename Body>
void for_each_positive(const NtXentWork& work, const Pair& pair, Body body) {
  for (std::int64_t i = 0; i < pair.rows; ++i) {
    const std::int64_t j = (pair.first_i + i + work.count / 2) % work.count - pair.first_j;
    if (j >= 0 && j < pair.columns) body(i, j);
  }
}

// Makes `found` the largest cosine of a row if it is, and what was summed so far relative to it.
inline void raise_maximum(const NtXentWork& work, double* sums, std::int64_t row, float found) {
  if (!(found > work.maximum[row])) return;
  const double step = static_cast<double>(work.maximum[row]) - static_cast<double>(found);
  sums[row] *= __builtin_exp(step * static_cast<double>(work.inverse_temperature));
  work.maximum[row] = found;
}

void raise_maxima(const NtXentWork& work, const Pair& pair, double* sums) {
  alignas(64) float of_column[kBlock];
  for (float& value : of_column) value = -2.0f;
  for (std::int64_t i = 0; i < pair.rows; ++i) {
    const float* row = pair.row(i, work.block);
    float largest = -2.0f;
    for (std::int64_t j = 0; j < (pair.padded & -kLanes); ++j) {
      largest = row[j] > largest ? row[j] : largest;
      of_column[j] = row[j] > of_column[j] ? row[j] : of_column[j];
    }
    raise_maximum(work, sums, pair.first_i + i, largest);
  }
  if (!pair.diagonal)
    for (std::int64_t j = 0; j < pair.columns; ++j) raise_maximum(work, sums, pair.first_j + j, of_column[j]);
}

// Adds a block to the sums of its rows and, off the diagonal, to those of its columns.
template <bool kOwnMaxima>
void add_block(const NtXentWork& work, const Pair& pair, double* sums) {
  if (kOwnMaxima) raise_maxima(work, pair, sums);
  const float k = work.inverse_temperature;
  const float* column_maximum = work.maximum + pair.first_j;
  for (std::int64_t strip = 0; strip < pair.rows; strip += kStrip) {
    alignas(64) float of_column[kBlock] = {};
    const std::int64_t end = strip + kStrip < pair.rows ? strip + kStrip : pair.rows;
    for (std::int64_t i = strip; i < end; ++i) {
      const float* row = pair.row(i, work.block);
      const float maximum = work.maximum[pair.first_i + i];
      float sum = 0.0f;
      for (std::int64_t j = 0; j < (pair.padded & -kLanes); ++j) {
        const float e = exp_within((row[j] - maximum) * k);
        sum += e;
        of_column[j] += kOwnMaxima ? exp_within((row[j] - column_maximum[j]) * k) : e;
      }
      sums[pair.first_i + i] += static_cast<double>(sum);
    }
    if (!pair.diagonal)
      for (std::int64_t j = 0; j < pair.columns; ++j) sums[pair.first_j + j] += static_cast<double>(of_column[j]);
  }
}

// Turns the cosines into the loss's slopes in them, both (i, j) and (j, i) counted, times T and the number of rows.
template <bool kOwnMaxima>
void differentiate_block(const NtXentWork& work, const Pair& pair) {
  const float k = work.inverse_temperature;
  const float *column_maximum = work.maximum + pair.first_j, *column_weight = work.weight + pair.first_j;
  for (std::int64_t i = 0; i < pair.rows; ++i) {
    float* row = pair.row(i, work.block);
    const float maximum = work.maximum[pair.first_i + i], weight = work.weight[pair.first_i + i];
    for (std::int64_t j = 0; j < (pair.padded & -kLanes); ++j) {
      const float e = exp_within((row[j] - maximum) * k);
      row[j] = kOwnMaxima ? e * weight + exp_within((row[j] - column_maximum[j]) * k) * column_weight[j]
                          : e * (weight + column_weight[j]);
    }
  }
}

}  // namespace

void nt_xent_prepare(const NtXentProblem& problem, const NtXentWork& work, int threads) {
  const std::int64_t dim = problem.dim, width = work.padded_dim;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t first = 0; first < work.padded_rows; first += kPanel) {
    for (std::int64_t i = first; i < first + kPanel; ++i) {
      float* row = work.rows + i * width;
      for (std::int64_t d = 0; d < width; ++d) row[d] = 0.0f;
      work.inverse_norm[i] = 0.0f;
      if (i >= work.count) continue;
      load(problem.type, problem.data, work.origin[i] * dim, 1, dim, row);
      double square = 0.0;  // whose range has room for any float32 row
      for (std::int64_t d = 0; d < dim; ++d) square += static_cast<double>(row[d]) * static_cast<double>(row[d]);
      const double norm = __builtin_sqrt(square);
      const double inverse = 1.0 / (norm < kEpsilon ? kEpsilon : norm);
      for (std::int64_t d = 0; d < dim; ++d) row[d] = static_cast<float>(static_cast<double>(row[d]) * inverse);
      work.inverse_norm[i] = static_cast<float>(inverse);
    }
    float* columns = work.columns + first * dim;
    for (std::int64_t d = 0; d < dim; ++d)
      for (std::int64_t i = 0; i < kPanel; ++i) columns[d * kPanel + i] = work.rows[(first + i) * width + d];
    if (work.panels == nullptr) continue;
    for (std::int64_t d = 0; d < width; d += kPanel)
      for (std::int64_t i = first; i < first + kPanel; ++i)
        for (std::int64_t lane = 0; lane < kPanel; ++lane)
          work.panels[(d / kPanel * work.padded_rows + i) * kPanel + lane] = work.rows[i * width + d + lane];
  }
}

void nt_xent_sums(const NtXentWork& work, std::int64_t dim, double* sums, float* positive, int threads) {
  for_each_pair(work, threads, [&](const Pair& pair) {
    cosines(work, dim, pair);
    for_each_positive(work, pair, [&](std::int64_t i, std::int64_t j) {
      positive[pair.first_i + i] = positive[pair.first_j + j] = pair.row(i, work.block)[j];
    });
    (work.own_maxima ? add_block<true> : add_block<false>)(work, pair, sums);
  });
}

void nt_xent_products(const NtXentWork& work, std::int64_t dim, int threads) {
  const std::int64_t width = work.padded_dim, block = work.block;
  __builtin_memset(work.gradient, 0, static_cast<std::size_t>(work.padded_rows * width) * sizeof(float));
  for_each_pair(work, threads, [&](const Pair& pair) {
    cosines(work, dim, pair);
    (work.own_maxima ? differentiate_block<true> : differentiate_block<false>)(work, pair);
    for_each_positive(work, pair, [&](std::int64_t i, std::int64_t j) { pair.row(i, block)[j] -= 2.0f; });
    const std::int64_t panel = work.padded_rows * kPanel;
    multiply({pair.tile, block, 1}, pair.rows, work.panels + pair.first_j * kPanel, panel, width, pair.columns,
             work.gradient + pair.first_i * width, width, true);
    if (!pair.diagonal)
      multiply({pair.tile, 1, block}, pair.columns, work.panels + pair.first_i * kPanel, panel, width, pair.rows,
               work.gradient + pair.first_j * width, width, true);
  });
}

void nt_xent_gradient(const NtXentProblem& problem, const NtXentWork& work, float scale, void* gradient, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t i = 0; i < work.count; ++i) {
    const float* row = work.rows + i * work.padded_dim;
    float* slope = work.gradient + i * work.padded_dim;
    float along = 0.0f;
    for (std::int64_t d = 0; d < problem.dim; ++d) along += row[d] * slope[d];
    const float inverse = work.inverse_norm[i];
    if (inverse >= static_cast<float>(1.0 / kEpsilon)) along = 0.0f;  // the norm was clamped, and is a constant
    for (std::int64_t d = 0; d < problem.dim; ++d) slope[d] = scale * (slope[d] - row[d] * along) * inverse;
    store(problem.type, slope, gradient, work.origin[i] * problem.dim, 1, problem.dim);
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
