// For what is no kernel of ours: something that a stream would do in its order, and a recording has to repeat.
#pragma once
#include <functional>

#include "../context.h"

namespace ltx::cuda {
void in_order(Context& context, const char* name, std::function<void()> body);
}  // namespace ltx::cuda
