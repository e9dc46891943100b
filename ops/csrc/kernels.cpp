// All kernels for one instruction set. Compiled once each with VM_ISA = portable, avx2, avx512 and VM_BYTES = 16, 32, 64.
#include "conv.h"
#include "cross_backward.h"
#include "cross_forward.h"
#include "scan_backward.h"
#include "scan_forward.h"

#define VM_TEXT_(x) #x
#define VM_TEXT(x) VM_TEXT_(x)

namespace vision_mamba {
namespace VM_ISA {

template <class T>
static constexpr Kernels kKernels = {
    kLanes<T>,        kChunk,            make_partition<T>, scan_forward<T>, scan_backward<T>, merge_weights<T>,
    cross_forward<T>, cross_backward<T>, merge_cross<T>,    conv_forward<T>, conv_backward<T>,
};

extern const InstructionSet instructions;
const InstructionSet instructions = {VM_TEXT(VM_ISA), kKernels<float>, kKernels<double>};

}  // namespace VM_ISA
}  // namespace vision_mamba
