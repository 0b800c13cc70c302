#include "rules.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "../runtime/enums.h"
#include "environment.h"

namespace ltx {
namespace {

const std::map<std::string, int64_t> kConstants = {
    {"UNARY", kGelu + 1}, {"NORM", kNormGroup + 1},        {"REDUCE", kSumSquares + 1},
    {"LOSS", kL2 + 1},    {"ORDER", kTimeWidthHeight + 1},
};
constexpr int kSamples = 0, kRank = 1;  // the numbers of S and RANK

// An expression over the numbers of a call, as steps of a stack machine.
struct Expression {
  enum Code : char {
    kConstant,
    kSymbol,
    kAdd,
    kSubtract,
    kMultiply,
    kDivide,
    kModulo,
    kEqual,
    kUnequal,
    kLess,
    kGreater,
    kAtMost,
    kAtLeast,
    kAnd,
    kOr
  };
  struct Step {
    Code code;
    int64_t value = 0;  // a constant, or the number of a symbol
  };
  std::vector<Step> steps;
  std::string text;
};

struct OperandRule {
  char dtype = 'a';  // of ops.def
  char shape = 0;    // ( exact dimensions, [ rows and columns, # size, 0 anything
  std::vector<Expression> sizes;
  std::string text;
};

struct OpRules {
  std::vector<std::string> names;  // in the order of a call: lists behind the other operands, written ones first
  std::vector<OperandRule> operands;
  std::vector<Expression> conditions;
  std::vector<int> scalars, there;  // the symbols of the scalars, and of ?operand
  size_t symbols = 0;
};

// --- Parsing

class Parser {
 public:
  Parser(const std::string& text, std::map<std::string, int>& symbols) : text_(text), symbols_(symbols) {}
  Expression expression() {
    disjunction();
    if (at_ != text_.size()) throw std::logic_error("ops.def: what is this: " + text_.substr(at_));
    result_.text = text_;
    return std::move(result_);
  }

 private:
  using Code = Expression::Code;
  bool take(const std::string& token) {
    if (text_.compare(at_, token.size(), token) != 0) return false;
    at_ += token.size();
    return true;
  }
  void add(Code code, int64_t value = 0) { result_.steps.push_back({code, value}); }

  void disjunction() {
    conjunction();
    while (take("|")) conjunction(), add(Code::kOr);
  }
  void conjunction() {
    comparison();
    while (take("&")) comparison(), add(Code::kAnd);
  }
  void comparison() {
    sum();
    const std::pair<const char*, Code> signs[] = {{"!=", Code::kUnequal}, {"<=", Code::kAtMost}, {">=", Code::kAtLeast},
                                                  {"=", Code::kEqual},    {"<", Code::kLess},    {">", Code::kGreater}};
    for (const auto& [sign, code] : signs) {
      if (!take(sign)) continue;
      sum();
      return add(code);
    }
  }
  void sum() {
    product();
    for (;;) {
      if (take("+")) {
        product(), add(Code::kAdd);
      } else if (take("-")) {
        product(), add(Code::kSubtract);
      } else {
        return;
      }
    }
  }
  void product() {
    primary();
    for (;;) {
      if (take("*")) {
        primary(), add(Code::kMultiply);
      } else if (take("/")) {
        primary(), add(Code::kDivide);
      } else if (take("%")) {
        primary(), add(Code::kModulo);
      } else {
        return;
      }
    }
  }
  void primary() {
    if (take("(")) {
      disjunction();
      if (!take(")")) throw std::logic_error("ops.def: ) is missing in " + text_);
      return;
    }
    const size_t begin = at_;
    if (at_ < text_.size() && text_[at_] == '?') ++at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '_')) ++at_;
    const std::string word = text_.substr(begin, at_ - begin);
    if (word.empty()) throw std::logic_error("ops.def: a number or name is missing in " + text_);
    if (std::isdigit(static_cast<unsigned char>(word[0]))) return add(Code::kConstant, std::stoll(word));
    if (const auto known = kConstants.find(word); known != kConstants.end()) return add(Code::kConstant, known->second);
    add(Code::kSymbol, symbols_.emplace(word, static_cast<int>(symbols_.size())).first->second);
  }

  const std::string text_;
  std::map<std::string, int>& symbols_;
  size_t at_ = 0;
  Expression result_;
};

// "T[R,C]": the dtype, then the shape.
OperandRule operand_rule(const std::string& text, std::map<std::string, int>& symbols) {
  OperandRule rule;
  rule.text = text;
  if (text.empty()) return rule;
  rule.dtype = text[0];
  if (text.size() == 1) return rule;
  rule.shape = text[1];
  const bool bracketed = rule.shape != '#';
  const std::string inner = text.substr(2, text.size() - (bracketed ? 3 : 2));
  int depth = 0;
  std::string part;
  for (const char c : inner + ",") {
    if (c == ',' && depth == 0) {
      rule.sizes.push_back(Parser(std::exchange(part, {}), symbols).expression());
      continue;
    }
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    part += c;
  }
  return rule;
}

OpRules parse(const char* named, const char* scalars, const char* operands, const char* conditions) {
  OpRules result;
  std::map<std::string, int> symbols = {{"S", kSamples}, {"RANK", kRank}};
  const auto symbol = [&](const std::string& name) {
    return symbols.emplace(name, static_cast<int>(symbols.size())).first->second;
  };
  const auto for_words = [](const char* text, const auto& body) {
    std::istringstream words(text);
    for (std::string word; words >> word;) body(word);
  };
  for_words(scalars, [&](const std::string& word) { result.scalars.push_back(symbol(word)); });
  std::vector<std::string> expected;
  for_words(operands, [&](const std::string& word) { expected.push_back(word); });
  bool written = false;
  size_t place = 0;
  // Which of three turns an operand comes in, its name and its rule.
  std::vector<std::tuple<int, std::string, std::string>> turns;
  for_words(named, [&](std::string word) {
    if (word == "->" || word == "=>") {
      written = true;
      return;
    }
    const char last = word.back();
    if (last == '?' || last == '*') word.pop_back();
    turns.emplace_back(last != '*' ? 0 : written ? 1 : 2, word, place < expected.size() ? expected[place] : "");
    ++place;
  });
  if (place != expected.size()) {
    throw std::logic_error(std::string("rules.def has not as many operands as ops.def: ") + operands);
  }
  std::stable_sort(turns.begin(), turns.end(),
                   [](const auto& a, const auto& b) { return std::get<0>(a) < std::get<0>(b); });
  for (const auto& [turn, name, rule] : turns) {
    result.names.push_back(name);
    result.there.push_back(symbol("?" + name));
    result.operands.push_back(operand_rule(rule, symbols));
  }
  for_words(conditions,
            [&](const std::string& word) { result.conditions.push_back(Parser(word, symbols).expression()); });
  result.symbols = symbols.size();
  return result;
}

// A line each, so that an op without one does not compile.
struct Line {
  const char *expected, *holding;
};
#define LTX_RULE(name, operands, conditions) constexpr Line k_##name = {operands, conditions};
#include "rules.def"
#undef LTX_RULE

const OpRules& rules_of(int op) {
  static const auto& all = *new std::vector<OpRules>([] {
    std::vector<OpRules> rules;
#define LTX_OP(name, operands, scalars) rules.push_back(parse(operands, scalars, k_##name.expected, k_##name.holding));
#include "../runtime/ops.def"
#undef LTX_OP
    return rules;
  }());
  return all[op];
}

// --- Checking

using Numbers = std::vector<std::optional<int64_t>>;

int64_t divided(int64_t a, int64_t b) {  // rounded down, as JavaScript's Math.floor(a / b)
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

// Nothing where a number is unknown, counts beyond 64 bits or is divided by zero; `unknown` tells the first apart.
std::optional<int64_t> evaluate(const Expression& expression, const Numbers& numbers, bool& unknown) {
  int64_t stack[32];
  int top = 0;
  for (const auto& [code, value] : expression.steps) {
    if (code == Expression::kConstant || code == Expression::kSymbol) {
      if (top == 32) return {};
      if (code == Expression::kSymbol && !numbers[value]) {
        unknown = true;
        return {};
      }
      stack[top++] = code == Expression::kConstant ? value : *numbers[value];
      continue;
    }
    const int64_t b = stack[--top], a = stack[--top];
    int64_t result = 0;
    bool overflow = false;
    switch (code) {
      case Expression::kAdd:
        overflow = __builtin_add_overflow(a, b, &result);
        break;
      case Expression::kSubtract:
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
      case Expression::kMultiply:
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
      case Expression::kDivide:
        if (b == 0) return {};
        result = divided(a, b);
        break;
      case Expression::kModulo:
        result = b == 0 ? 0 : a % b;
        break;
      case Expression::kEqual:
        result = a == b;
        break;
      case Expression::kUnequal:
        result = a != b;
        break;
      case Expression::kLess:
        result = a < b;
        break;
      case Expression::kGreater:
        result = a > b;
        break;
      case Expression::kAtMost:
        result = a <= b;
        break;
      case Expression::kAtLeast:
        result = a >= b;
        break;
      case Expression::kAnd:
        result = a && b;
        break;
      default:
        result = a || b;
    }
    if (overflow) return {};
    stack[top++] = result;
  }
  return stack[0];
}

std::string shown(const LtxTensor& tensor) {
  const char* const names[] = {"f32", "bf16", "i32", "u8"};
  std::string text = std::string(names[tensor.dtype & 3]) + " [";
  for (int i = 0; i < tensor.dims; ++i) text += (i ? "," : "") + std::to_string(tensor.shape[i]);
  return text + "]";
}

int64_t product(const LtxTensor& tensor, int dims) {
  int64_t n = 1;
  for (int i = 0; i < dims; ++i) n *= tensor.shape[i];
  return n;
}

// The tensor's sizes in the terms of the rule; false where it has none in them.
bool sizes_of(const OperandRule& rule, const LtxTensor& tensor, std::vector<int64_t>& sizes) {
  sizes.clear();
  if (rule.shape == '(') {
    sizes.assign(tensor.shape, tensor.shape + tensor.dims);
  } else if (rule.shape == '[') {
    sizes = {tensor.dims ? product(tensor, tensor.dims - 1) : 1, tensor.dims ? tensor.shape[tensor.dims - 1] : 1};
  } else if (rule.shape == '#') {
    sizes = {product(tensor, tensor.dims)};
  }
  return sizes.size() == rule.sizes.size();
}

bool dtype_fits(char rule, int dtype, std::optional<int>& shared) {
  const bool is_float = dtype == LTX_F32 || dtype == LTX_BF16;
  switch (rule) {
    case 'f':
      return dtype == LTX_F32;
    case 'i':
      return dtype == LTX_I32;
    case '~':
      return is_float;
    case 'T':
      if (!shared) shared = dtype;
      return is_float && *shared == dtype;
    default:
      return true;
  }
}

}  // namespace

std::string mismatch(int op, const std::vector<LtxTensor>& tensors, const double* scalars) {
  const OpSignature& counts = signature(op);
  const OpRules& rules = rules_of(op);
  Numbers numbers(rules.symbols);
  for (int i = 0; i < counts.scalar_count; ++i) {
    const double value = scalars[i];
    if (std::fabs(value) <= 0x1p53 && value == std::floor(value)) {
      numbers[rules.scalars[i]] = static_cast<int64_t>(value);
    }
  }
  const int fixed = counts.required_or_optional;
  std::vector<int64_t> sizes;
  // What stands alone in a shape gets its number there.
  for (int i = 0; i < fixed; ++i) {
    const LtxTensor& tensor = tensors[i];
    numbers[rules.there[i]] = tensor.dims >= 0;
    if (i == 0 && tensor.dims >= 0) {
      numbers[kSamples] = tensor.dims > 1 ? tensor.shape[0] : 1;
      numbers[kRank] = tensor.dims;
    }
    if (tensor.dims < 0 || !sizes_of(rules.operands[i], tensor, sizes)) continue;
    for (size_t d = 0; d < sizes.size(); ++d) {
      const auto& steps = rules.operands[i].sizes[d].steps;
      if (steps.size() != 1 || steps[0].code != Expression::kSymbol || numbers[steps[0].value]) continue;
      numbers[steps[0].value] = sizes[d];
    }
  }
  std::optional<int> shared;
  bool unknown = false;
  const auto fail = [&](int i, const OperandRule& rule) {
    return "operand " + rules.names[i] + " is " + shown(tensors[i]) + ", which is not " + rule.text;
  };
  for (int i = 0; i < fixed; ++i) {
    const LtxTensor& tensor = tensors[i];
    if (tensor.dims < 0) continue;
    bool fits = dtype_fits(rules.operands[i].dtype, tensor.dtype, shared) && sizes_of(rules.operands[i], tensor, sizes);
    for (size_t d = 0; fits && d < sizes.size(); ++d)
      fits = evaluate(rules.operands[i].sizes[d], numbers, unknown) == sizes[d];
    if (!fits) return fail(i, rules.operands[i]);
  }
  for (const Expression& rule : rules.conditions) {
    // A scalar that is not whole is unknown too, but no reason to pass.
    unknown = false;
    const std::optional<int64_t> holds = evaluate(rule, numbers, unknown);
    if (holds && *holds) continue;
    bool left_out = unknown;
    for (const auto& [code, value] : rule.steps) {
      for (const int scalar : rules.scalars)
        left_out &= code != Expression::kSymbol || value != scalar || numbers[value];
    }
    if (!left_out) return rule.text + " does not hold";
  }
  // Of the lists each has a tensor like those at its place in the others.
  const int length = counts.lists ? (static_cast<int>(tensors.size()) - fixed) / counts.lists : 0;
  for (int i = fixed; i < static_cast<int>(tensors.size()); ++i) {
    const int list = (i - fixed) / length, first = fixed + (i - fixed) % length;
    const bool fits = dtype_fits(rules.operands[fixed + list].dtype, tensors[i].dtype, shared) &&
                      product(tensors[i], tensors[i].dims) == product(tensors[first], tensors[first].dims);
    if (!fits) {
      return "a tensor of list " + rules.names[fixed + list] + " is " + shown(tensors[i]) + ", its fellow " +
             shown(tensors[first]);
    }
  }
  return {};
}

}  // namespace ltx
