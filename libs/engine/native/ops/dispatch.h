// dispatch.h: picks an operation's row kernels for an instruction set.
//   An operation `op` keeps its innermost loops in a table of function pointers, OpRows, declared in op_rows.h and defined as
//   op_rows_scalar in op_cpu.cpp (the definition, written to be read) and op_rows_avx2, op_rows_avx512 in the files of those names.
#pragma once

#include "core/cpu_info.h"

#ifdef ENGINE_X86
#define ENGINE_ROWS(isa, table) \
  ((isa) >= ::engine::Isa::avx512 ? table##_avx512 : (isa) >= ::engine::Isa::avx2 ? table##_avx2 : table##_scalar)
#else
#define ENGINE_ROWS(isa, table) (table##_scalar)
#endif
