// One object file per instruction set, one choice at load.
//
// Every <op>_cpu.cpp is compiled once per set, with FASTMTL_ISA naming the namespace its functions live in
// (setup.py passes the flags). The header of the op declares them for all sets; <op>.cpp calls
// FASTMTL_DISPATCH(function), which jumps to the best set this processor has. FASTMTL_ISA in the environment
// lowers the choice ("avx2", "baseline"), for tests and for measuring what a set brings.
//
// Everything a kernel file defines stands inside that namespace, or is static. An inline function or a template of
// std:: that is not inlined becomes a weak symbol, the linker keeps one copy for all sets, and that may be the AVX-512
// one: an illegal instruction on other processors. `nm -C OBJECT` shows them as W.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define FASTMTL_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512)
#else
#define FASTMTL_FOR_EACH_ISA(X) X(baseline)
#endif

namespace fastmtl {

enum class Isa { baseline, avx2, avx512 };

// Floats of the widest vector of them all: loops run over whole multiples, so that none has a remainder.
constexpr std::int64_t kLanes = 16;

Isa active_isa();
const char* isa_name(Isa isa);

#if defined(__x86_64__) || defined(_M_X64)
#define FASTMTL_DISPATCH(function)                                      \
  (::fastmtl::active_isa() == ::fastmtl::Isa::avx512                    \
       ? ::fastmtl::avx512::function                                    \
       : ::fastmtl::active_isa() == ::fastmtl::Isa::avx2 ? ::fastmtl::avx2::function : ::fastmtl::baseline::function)
#else
#define FASTMTL_DISPATCH(function) (::fastmtl::baseline::function)
#endif

}  // namespace fastmtl
