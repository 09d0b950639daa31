#include "lib/catalog/strict_json.h"

#include <charconv>
#include <cmath>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

using nlohmann::json;

// Builds the value and stops at the first thing that is wrong; error_ says what and where.
class Builder : public nlohmann::json_sax<json> {
 public:
  bool null() override { return Put(json(nullptr)); }
  bool boolean(bool value) override { return Put(json(value)); }
  bool number_integer(number_integer_t value) override { return Put(json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return Put(json(value)); }
  bool number_float(number_float_t value, const string_t&) override { return Put(json(value)); }
  bool string(string_t& value) override { return Put(json(std::move(value))); }
  bool binary(binary_t&) override { return Fail("binary value"); }
  bool start_object(std::size_t) override { return Open(json::object()); }
  bool start_array(std::size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    if (open_.back().value.contains(name)) return Fail(StrCat("key given twice: ", name));
    open_.back().key = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const json::exception&) override {
    return Fail(StrCat("syntax error at byte ", position));
  }

  json& result() { return result_; }
  const std::string& error() const { return error_; }

 private:
  struct Level {
    json value;
    std::string key;  // of the member that comes next, in an object
  };

  bool Fail(std::string reason) {
    error_ = std::move(reason);
    return false;
  }

  bool Open(json empty) {
    if (open_.size() >= kMaxJsonDepth) return Fail(StrCat("nested deeper than ", kMaxJsonDepth));
    open_.push_back({std::move(empty), {}});
    return true;
  }

  bool Close() {
    json done = std::move(open_.back().value);
    open_.pop_back();
    return Put(std::move(done));
  }

  bool Put(json value) {
    if (open_.empty()) {
      result_ = std::move(value);
    } else if (open_.back().value.is_array()) {
      open_.back().value.push_back(std::move(value));
    } else {
      open_.back().value[open_.back().key] = std::move(value);
    }
    return true;
  }

  std::vector<Level> open_;
  json result_;
  std::string error_;
};

void Write(const json& value, int indent, int depth, std::string* out) {
  const auto line = [&](int level) {
    if (indent > 0) out->append("\n").append(static_cast<size_t>(indent * level), ' ');
  };
  const auto list = [&](char open, char close, auto&& write_entry) {
    out->push_back(open);
    bool first = true;
    for (auto it = value.begin(); it != value.end(); ++it) {
      if (!first) out->push_back(',');
      first = false;
      line(depth + 1);
      write_entry(it);
    }
    if (!first) line(depth);
    out->push_back(close);
  };
  switch (value.type()) {
    case json::value_t::object:
      list('{', '}', [&](auto it) {
        out->append(json(it.key()).dump()).append(indent > 0 ? ": " : ":");
        Write(it.value(), indent, depth + 1, out);
      });
      break;
    case json::value_t::array:
      list('[', ']', [&](auto it) { Write(*it, indent, depth + 1, out); });
      break;
    case json::value_t::number_float: {
      const double number = value.get<double>();
      GRADQ_CHECK(std::isfinite(number));
      char buffer[32];
      out->append(buffer, std::to_chars(buffer, buffer + sizeof(buffer), number).ptr);
      break;
    }
    default:
      out->append(value.dump());
  }
}

}  // namespace

std::string CanonicalJson(const json& value, int indent) {
  std::string text;
  Write(value, indent, 0, &text);
  return text;
}

absl::StatusOr<json> ParseJson(std::string_view text, std::string_view what) {
  Builder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(StrCat(what, ": not valid JSON: ", builder.error()));
  }
  return std::move(builder.result());
}

absl::StatusOr<json> ParseJsonObject(std::string_view text, std::string_view what) {
  GRADQ_ASSIGN_OR_RETURN(json value, ParseJson(text, what));
  if (!value.is_object()) {
    return absl::InvalidArgumentError(StrCat(what, ": not a JSON object: ", value.type_name()));
  }
  return value;
}

}  // namespace gradq
