// The element types a tensor can hold, by the codes fastmtl/ops/core/pointers.py passes.
#pragma once

namespace fastmtl {

enum class Element : int {
  float32 = 0,
  float16 = 1,
  bfloat16 = 2,
  float64 = 3,
  uint8 = 4,
  boolean = 5,
  int16 = 6,
  int32 = 7,
  int64 = 8
};

}  // namespace fastmtl
