// One object file per instruction set, one choice at load.
//
// Every <op>_cpu.cpp is compiled once per set, with FASTMTL_ISA naming the namespace its functions are in (setup.py
// passes the flags). The op's header declares them for all sets with FASTMTL_FOR_EACH_ISA; <op>.cpp calls
// FASTMTL_DISPATCH(function, arguments...), which jumps to the best set this processor has. FASTMTL_ISA in the
// environment lowers the choice ("avx2", "baseline"), for tests and for measurements.
//
// Everything a kernel file defines must be inside that namespace or static, and no kernel file may use a template of
// std::. An inline function that is not inlined becomes a weak symbol, the linker keeps one copy for all sets, and that
// may be the AVX-512 one: an illegal instruction on other processors. `nm -C OBJECT` shows them as W.
#pragma once

#include <cstdint>

namespace fastmtl {

enum class Isa { baseline, avx2, avx512 };

// Floats of the widest vector of all sets: loops run over whole multiples, so that none has a remainder.
constexpr std::int64_t kLanes = 16;

Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace fastmtl

#if defined(__x86_64__) || defined(_M_X64)
#define FASTMTL_FOR_EACH_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__                     \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__                     \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__                     \
  }
#define FASTMTL_DISPATCH(function, ...)                                            \
  (::fastmtl::active_isa() == ::fastmtl::Isa::avx512 ? ::fastmtl::avx512::function \
   : ::fastmtl::active_isa() == ::fastmtl::Isa::avx2 ? ::fastmtl::avx2::function   \
                                                     : ::fastmtl::baseline::function)(__VA_ARGS__)
#else
#define FASTMTL_FOR_EACH_ISA(...) \
  namespace baseline {            \
  __VA_ARGS__                     \
  }
#define FASTMTL_DISPATCH(function, ...) ::fastmtl::baseline::function(__VA_ARGS__)
#endif
