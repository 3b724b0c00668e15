#include "matching/assignment.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

double shorten(const double* cost, const double* price, const double* closed, double passed, std::int64_t last,
               std::int64_t columns, double* distance, std::int64_t* previous) {
  constexpr std::int64_t kLanes = 8;
  double shortest[kLanes];
  for (std::int64_t lane = 0; lane < kLanes; ++lane) shortest[lane] = 1e300;
  for (std::int64_t first = 0; first < columns; first += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const std::int64_t k = first + lane;
      const double through = cost[k] - price[k] - passed;
      const bool nearer = through < distance[k] && closed[k] == 0.0;
      distance[k] = nearer ? through : distance[k];
      previous[k] = nearer ? last : previous[k];
      const double open = distance[k] + closed[k];
      shortest[lane] = open < shortest[lane] ? open : shortest[lane];
    }
  }
  for (std::int64_t lane = 1; lane < kLanes; ++lane)
    shortest[0] = shortest[lane] < shortest[0] ? shortest[lane] : shortest[0];
  return shortest[0];
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
