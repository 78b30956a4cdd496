// adamw.h: AdamW over a flat run of parameters (ops/adamw.h has the formulas). p, g fp32.
//   What changes from step to step is read from device memory, so that a captured graph can be replayed: `constants` (engine::adamw_constants of the
//   step, copied by the caller; its grad_scale is not used) and `grad_scale` (clip_scale below). When *grad_scale is not finite the launch changes
//   nothing: the step is skipped. The same bits as the CPU's scalar definition.
#pragma once

#include <cstdint>

#include "cuda/runtime/handles.h"
#include "ops/adamw.h"
#include "ops/adamw_rows.h"

namespace engine::cuda {

// m, v fp32 [n].
void adamw_f32(const AdamWConstants* constants, const float* grad_scale, float* p, const float* g, float* m, float* v, std::int64_t n, cudaStream_t stream);

// m_codes, v_codes [n] bytes; m_absmax, v_absmax [dynamic_blocks(n)]. p, g, codes 16-byte aligned.
void adamw_8bit(const AdamWConstants* constants, const float* grad_scale, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes,
                float* m_absmax, float* v_absmax, std::int64_t n, cudaStream_t stream);

}  // namespace engine::cuda
