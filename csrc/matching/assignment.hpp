// Batched linear assignment: the queries that go with each sample's targets at the least total cost.
#pragma once

#include <array>
#include <cstdint>

#include "core/isa.hpp"

namespace fastmtl {

struct AssignmentProblem {
  std::int64_t batch, queries, targets;
  const void* cost;  // [batch, queries, targets]
  bool is_double;    // else float
  std::array<std::int64_t, 3> strides;
  const std::int64_t* num_targets;  // [batch]; null: all
};

// Writes matches [batch, targets]: a query, or -1. False, and nothing written, where num_targets is
// outside 0 to targets.
bool linear_assignment(const AssignmentProblem& problem, std::int64_t* matches);

// One scan of Dijkstra's algorithm: where `cost - price - passed` is below a column's distance it replaces it, and
// `last` becomes the column before. Returns the least distance of the open columns; closed ones hold infinity in
// `closed`, open ones 0. `columns` is a multiple of 8.
FASTMTL_FOR_EACH_ISA(double shorten(const double* cost, const double* price, const double* closed, double passed,
                                    std::int64_t last, std::int64_t columns, double* distance, std::int64_t* previous);)

}  // namespace fastmtl
