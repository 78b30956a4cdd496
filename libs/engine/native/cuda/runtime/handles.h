// handles.h: the two opaque handles of the CUDA runtime, declared as cuda_runtime.h declares them, so that the headers of operations need nothing else.
#pragma once

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
