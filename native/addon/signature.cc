#include <limits>
#include <sstream>

#include "environment.h"

namespace ltx {
namespace {

OpSignature parse(const char* operands, const char* scalars) {
  OpSignature result;
  std::istringstream words(operands);
  bool outputs = false;
  int updated = -1;
  for (std::string word; words >> word;) {
    if (word == "->" || word == "=>") {
      if (!outputs) {
        result.first_output = result.required_or_optional;
        result.read_lists = result.lists;
      }
      if (word == "=>") updated = result.required_or_optional;
      outputs = true;
    } else if (word.back() == '*') {
      ++result.lists;
      result.operand_names.push_back(word.substr(0, word.size() - 1));
    } else {
      const bool optional = word.back() == '?';
      if (optional) word.pop_back();
      ++result.required_or_optional;
      result.optional.push_back(optional);
      result.operand_names.push_back(word);
    }
  }
  if (!outputs) throw std::logic_error("op without outputs");
  // Without one, behind whatever is written.
  result.first_updated = updated >= 0 ? updated : std::numeric_limits<int>::max();
  std::istringstream names(scalars);
  for (std::string word; names >> word;) ++result.scalar_count;
  return result;
}

}  // namespace

const OpSignature& signature(int op) {
  static const auto& signatures = *new std::vector<OpSignature>([] {
    std::vector<OpSignature> all;
#define LTX_OP(name, operands, scalars) all.push_back(parse(operands, scalars));
#include "../runtime/ops.def"
#undef LTX_OP
    return all;
  }());
  return signatures[op];
}

}  // namespace ltx
