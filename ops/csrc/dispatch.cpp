// Chooses the kernels for the processor the library finds itself on.
#include <cstdlib>
#include <cstring>

#include "params.h"

namespace vision_mamba {

namespace portable {
extern const InstructionSet instructions;
}
#if defined(__x86_64__)
namespace avx2 {
extern const InstructionSet instructions;
}
namespace avx512 {
extern const InstructionSet instructions;
}
#endif

static const InstructionSet& choose() {
  const InstructionSet* best[3] = {&portable::instructions};
  int count = 1;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best[count++] = &avx2::instructions;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best[count++] = &avx512::instructions;
    }
  }
#endif
  // For tests of the slower paths; a name this processor cannot run is passed over.
  if (const char* wanted = std::getenv("VISION_MAMBA_OPS_ISA")) {
    for (int i = 0; i < count; i++) {
      if (std::strcmp(wanted, best[i]->name) == 0) return *best[i];
    }
  }
  return *best[count - 1];
}

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = choose();
  return chosen;
}

}  // namespace vision_mamba
