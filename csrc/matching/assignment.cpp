// Shortest augmenting paths (Jonker and Volgenant 1987), as fastmtl/reference/assignment.py explains them. Compiled
// without the kernels' relaxed floating-point flags: ties are decided as there, by the same sums in the same order.
#include "matching/assignment.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fastmtl {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLargest = 1e100;  // a cost beyond it counts as infinite

struct Workspace {
  std::int64_t columns, width;          // width: columns rounded up to whole vectors
  std::vector<double> cost;             // [rows, width]
  std::vector<double> price, distance;  // [width]
  std::vector<double> closed;           // [width]: infinity where Dijkstra's algorithm has finished a column, else 0
  std::vector<std::int64_t> owner;      // [width]: a column's row, or -1
  std::vector<std::int64_t> previous;   // [width]: the column before it on the path, -1 at the start
};

// What is no usable number becomes a large one: above any sum of costs, and where forbidden above any sum of those.
void make_usable(std::int64_t rows, double factor, Workspace& w) {
  double low = kInfinity, high = -kInfinity;
  for (std::int64_t r = 0; r < rows; ++r) {
    const double* line = w.cost.data() + r * w.width;
    for (std::int64_t k = 0; k < w.columns; ++k) {
      if (!(std::abs(line[k]) <= kLargest)) continue;
      low = std::min(low, line[k]);
      high = std::max(high, line[k]);
    }
  }
  double spread = high - low;
  if (!(spread >= 0.0)) low = 0.0;
  if (!(spread > 0.0)) spread = 1.0;
  for (double& value : w.cost)
    if (!(std::abs(value) <= kLargest)) value = low + (value > kLargest ? factor * factor : factor) * spread;
}

template <typename T>
void read_cost(const T* cost, std::int64_t row_stride, std::int64_t column_stride, std::int64_t rows, double factor,
               Workspace& w) {
  w.cost.assign(static_cast<std::size_t>(rows * w.width), 0.0);
  bool usable = true;
  for (std::int64_t k = 0; k < w.columns; ++k) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const double value = static_cast<double>(cost[r * row_stride + k * column_stride]);
      usable &= std::abs(value) <= kLargest;
      w.cost[r * w.width + k] = value;
    }
  }
  if (!usable) make_usable(rows, factor, w);
}

// Of the open columns at this distance a free one, else the first.
std::int64_t nearest(double distance, const Workspace& w) {
  std::int64_t first = -1;
  for (std::int64_t k = 0; k < w.columns; ++k) {
    if (w.distance[k] != distance || w.closed[k] != 0.0) continue;
    if (w.owner[k] < 0) return k;
    if (first < 0) first = k;
  }
  return first;
}

// Gives `row` a column along the cheapest path; the rows met on it move to other columns.
void insert_row(std::int64_t row, Workspace& w) {
  std::fill(w.distance.begin(), w.distance.end(), kInfinity);
  std::fill(w.closed.begin(), w.closed.begin() + w.columns, 0.0);
  std::int64_t last = -1, here = row;
  double passed = 0.0, reached = 0.0;
  while (here >= 0) {
    reached = FASTMTL_DISPATCH(shorten, w.cost.data() + here * w.width, w.price.data(), w.closed.data(), passed, last,
                               w.width, w.distance.data(), w.previous.data());
    last = nearest(reached, w);
    w.closed[last] = kInfinity;
    here = w.owner[last];
    if (here >= 0) passed = w.cost[here * w.width + last] - w.price[last] - reached;
  }
  for (std::int64_t k = 0; k < w.columns; ++k)
    if (w.closed[k] != 0.0) w.price[k] += w.distance[k] - reached;
  while (last >= 0) {
    const std::int64_t before = w.previous[last];
    w.owner[last] = before < 0 ? row : w.owner[before];
    last = before;
  }
}

template <typename T>
void match_sample(const AssignmentProblem& p, std::int64_t sample, std::int64_t number, double factor, Workspace& w,
                  std::int64_t* matches) {
  const T* cost = static_cast<const T*>(p.cost) + sample * p.strides[0];
  const bool swapped = number > p.queries;  // the fewer are rows: each of them finds a column
  const std::int64_t rows = swapped ? p.queries : number;
  const std::int64_t row_stride = p.strides[swapped ? 1 : 2], column_stride = p.strides[swapped ? 2 : 1];
  w.columns = swapped ? number : p.queries;
  w.width = (w.columns + 7) / 8 * 8;
  read_cost(cost, row_stride, column_stride, rows, factor, w);
  w.price.assign(w.width, 0.0);
  w.distance.resize(w.width);
  w.closed.assign(w.width, kInfinity);
  w.owner.assign(w.width, -1);
  w.previous.resize(w.width);
  for (std::int64_t row = 0; row < rows; ++row) insert_row(row, w);
  std::fill(matches, matches + p.targets, std::int64_t{-1});
  for (std::int64_t k = 0; k < w.columns; ++k) {
    const std::int64_t row = w.owner[k];
    if (row < 0 || static_cast<double>(cost[row * row_stride + k * column_stride]) > kLargest) continue;
    matches[swapped ? k : row] = swapped ? row : k;
  }
}

}  // namespace

bool linear_assignment(const AssignmentProblem& problem, std::int64_t* matches) {
  const auto number_of = [&](std::int64_t b) { return problem.num_targets ? problem.num_targets[b] : problem.targets; };
  for (std::int64_t b = 0; b < problem.batch; ++b)
    if (number_of(b) < 0 || number_of(b) > problem.targets) return false;
  double factor = 1.0;  // a power of two above the number of pairs: its products are exact
  while (factor <= static_cast<double>(std::max(problem.queries, problem.targets))) factor *= 2.0;
  Workspace workspace;
  for (std::int64_t b = 0; b < problem.batch; ++b) {
    std::int64_t* own = matches + b * problem.targets;
    if (problem.is_double) {
      match_sample<double>(problem, b, number_of(b), factor, workspace, own);
    } else {
      match_sample<float>(problem, b, number_of(b), factor, workspace, own);
    }
  }
  return true;
}

}  // namespace fastmtl
