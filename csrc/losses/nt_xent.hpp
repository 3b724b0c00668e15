// NT-Xent (SimCLR) on projections [2N, D]: row i and row i + N are a positive pair, all other rows are negatives.
// The definition is fastmtl/reference/nt_xent.py.
//
// The similarities S = Y Y^T of the normalised rows Y are symmetric, so only blocks on and above the diagonal are
// computed, each in one thread's cache, and each serves both of its row sets: forward as row sums and as column sums
// of exp(S / T), backward as W Y_J and W^T Y_I. No more of S exists at any time than one block per thread.
//
// Which blocks are computed together is fixed: in round r those of block rows I, J with I + J = r modulo their number.
// They touch disjoint rows, so threads share nothing, and every row gets its contributions in the order of the rounds:
// bit-equal over thread counts.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/isa.hpp"

namespace fastmtl {

struct NtXentProblem {
  const void* data;  // [rows, dim], contiguous
  Element type;      // float32, float16 or bfloat16
  std::int64_t rows, dim;
  const std::uint8_t* mask;  // [rows / 2]: pairs that take part; or nullptr: all
  double temperature;
};

// The rows that take part, normalised, and the layout of the scratch memory.
struct NtXentWork {
  const std::int64_t* origin;  // [count]: which row of the input; row i's positive is row (i + count / 2) % count
  std::int64_t count, block, padded_rows, padded_dim;
  float inverse_temperature;
  // Where exp(s / T) could leave float32's range, each row relates its terms to its largest s so far. Elsewhere its
  // `maximum` is 0, and one exponential serves both (i, j) and (j, i).
  bool own_maxima;
  float* rows;          // [padded_rows, padded_dim], normalised; what is padding is 0
  float* columns;       // [padded_rows / kPanel, dim, kPanel]: `rows` transposed, for the products of rows with rows
  float* panels;        // [padded_dim / kPanel, padded_rows, kPanel]: `rows` again, for W Y; backward only
  float* gradient;      // [padded_rows, padded_dim]: of each normalised row; backward only
  float* tiles;         // [threads, block, block]
  float* inverse_norm;  // [padded_rows]: 1 / max(norm, 1e-12)
  float* maximum;       // [padded_rows]
  float* weight;        // [padded_rows]: 1 / sum over j != i of exp((s_ij - maximum_i) / T); backward only
};

// What `scratch` must hold, in floats.
std::int64_t nt_xent_scratch(std::int64_t rows, std::int64_t dim, bool backward, int threads);

// loss []; coefficients [2 * rows + 1]: the rows' maxima, their weights (0 where they take no part), and 1 / rows that
// take part.
void nt_xent_forward(const NtXentProblem& problem, float* loss, float* coefficients, float* scratch, int threads);

// gradient [rows, dim] = grad * d loss / d data, in the data's type.
void nt_xent_backward(const NtXentProblem& problem, const float* grad, const float* coefficients, void* gradient,
                      float* scratch, int threads);

// kPanel: columns that a panel of a matrix has; kTileRows: a multiple of the rows that every instruction set multiplies
// at once, and of kPanel.
constexpr std::int64_t kPanel = 32, kTileRows = 96;

FASTMTL_FOR_EACH_ISA(
    void nt_xent_prepare(const NtXentProblem& problem, const NtXentWork& work, int threads);
    void nt_xent_sums(const NtXentWork& work, std::int64_t dim, double* sums, float* positive, int threads);
    void nt_xent_products(const NtXentWork& work, std::int64_t dim, int threads);
    void nt_xent_gradient(const NtXentProblem& problem, const NtXentWork& work, float scale, void* gradient,
                          int threads);)

}  // namespace fastmtl
