// What happens once per row: which rows take part, where the scratch memory goes, and the loss, in float64.
#include "losses/nt_xent.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace fastmtl {
namespace {

// exp(s / T) lies within exp(-64) and exp(64) up to this 1 / T: neither it nor a sum of 1e10 of them overflows, and it
// stays above where exp_within cuts off.
constexpr double kLargestExponent = 64.0;

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

// Small enough that small batches have blocks for several threads, large enough to hide the reading of operands.
std::int64_t block_size(std::int64_t rows) { return rows <= 1024 ? kTileRows : 2 * kTileRows; }

std::int64_t useful_threads(std::int64_t rows, int threads) {
  const std::int64_t blocks = (rows + block_size(rows) - 1) / block_size(rows);
  return std::clamp<std::int64_t>((blocks + 1) / 2, 1, std::max(threads, 1));
}

std::vector<std::int64_t> taking_part(const NtXentProblem& problem) {
  std::vector<std::int64_t> origin;
  const std::int64_t pairs = problem.rows / 2;
  for (std::int64_t row = 0; row < problem.rows; ++row)
    if (problem.mask == nullptr || problem.mask[row % pairs] != 0) origin.push_back(row);
  return origin;
}

NtXentWork lay_out(const NtXentProblem& problem, const std::vector<std::int64_t>& origin, bool backward,
                   float* scratch) {
  NtXentWork work = {};
  work.origin = origin.data();
  work.count = static_cast<std::int64_t>(origin.size());
  work.block = block_size(problem.rows);
  work.padded_rows = round_up(work.count, kTileRows);
  work.padded_dim = round_up(problem.dim, kPanel);
  work.inverse_temperature = static_cast<float>(1.0 / problem.temperature);
  work.own_maxima = 1.0 / problem.temperature > kLargestExponent;
  const auto take = [&](std::int64_t floats) {
    float* begin = scratch;
    scratch += floats;
    return begin;
  };
  work.inverse_norm = take(work.padded_rows);
  work.maximum = take(work.padded_rows);
  work.weight = take(work.padded_rows);
  work.rows = take(work.padded_rows * work.padded_dim);
  work.columns = take(work.padded_rows * problem.dim);
  if (backward) {
    work.panels = take(work.padded_rows * work.padded_dim);
    work.gradient = take(work.padded_rows * work.padded_dim);
  }
  work.tiles = scratch;
  return work;
}

}  // namespace

std::int64_t nt_xent_scratch(std::int64_t rows, std::int64_t dim, bool backward, int threads) {
  const std::int64_t padded_rows = round_up(rows, kTileRows), padded_dim = round_up(dim, kPanel);
  const std::int64_t matrices = (backward ? 3 : 1) * padded_dim + dim;
  const std::int64_t block = block_size(rows);
  return padded_rows * (3 + matrices) + useful_threads(rows, threads) * block * block;
}

void nt_xent_forward(const NtXentProblem& problem, float* loss, float* coefficients, float* scratch, int threads) {
  threads = static_cast<int>(useful_threads(problem.rows, threads));
  const std::vector<std::int64_t> origin = taking_part(problem);
  const NtXentWork work = lay_out(problem, origin, false, scratch);
  FASTMTL_DISPATCH(nt_xent_prepare, problem, work, threads);
  std::fill(work.maximum, work.maximum + work.padded_rows, work.own_maxima ? -2.0f : 0.0f);  // below any cosine
  std::vector<double> sums(static_cast<std::size_t>(work.count), 0.0);
  std::vector<float> positive(static_cast<std::size_t>(work.count), 0.0f);
  FASTMTL_DISPATCH(nt_xent_sums, work, problem.dim, sums.data(), positive.data(), threads);
  std::fill(coefficients, coefficients + 2 * problem.rows, 0.0f);
  const double inverse_count = 1.0 / static_cast<double>(std::max<std::int64_t>(work.count, 1));
  double total = 0.0;
  for (std::int64_t i = 0; i < work.count; ++i) {
    // Rounded as in the sum, so that a row with nothing but its positive costs 0.
    const float exponent = (positive[i] - work.maximum[i]) * work.inverse_temperature;
    total += std::log(sums[i]) - static_cast<double>(exponent);
    coefficients[origin[i]] = work.maximum[i];
    coefficients[problem.rows + origin[i]] = static_cast<float>(1.0 / sums[i]);
  }
  coefficients[2 * problem.rows] = static_cast<float>(inverse_count);
  *loss = static_cast<float>(total * inverse_count);
}

void nt_xent_backward(const NtXentProblem& problem, const float* grad, const float* coefficients, void* gradient,
                      float* scratch, int threads) {
  threads = static_cast<int>(useful_threads(problem.rows, threads));
  const std::vector<std::int64_t> origin = taking_part(problem);
  const NtXentWork work = lay_out(problem, origin, true, scratch);
  FASTMTL_DISPATCH(nt_xent_prepare, problem, work, threads);
  std::fill(work.maximum, work.maximum + work.padded_rows, 0.0f);
  std::fill(work.weight, work.weight + work.padded_rows, 0.0f);
  for (std::int64_t i = 0; i < work.count; ++i) {
    work.maximum[i] = coefficients[origin[i]];
    work.weight[i] = coefficients[problem.rows + origin[i]];
  }
  FASTMTL_DISPATCH(nt_xent_products, work, problem.dim, threads);
  const std::size_t size = problem.type == Element::float32 ? 4 : 2;
  if (work.count < problem.rows) std::memset(gradient, 0, static_cast<std::size_t>(problem.rows * problem.dim) * size);
  const double scale = static_cast<double>(*grad) * coefficients[2 * problem.rows] / problem.temperature;
  FASTMTL_DISPATCH(nt_xent_gradient, problem, work, static_cast<float>(scale), gradient, threads);
}

}  // namespace fastmtl
