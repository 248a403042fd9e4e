// The data part of a file of tensors: each tensor's bytes in turn, never a whole one in memory. What the writers of formats share.
#pragma once

#include <lowbit/io/file_writer.hpp>

#include <string>
#include <vector>

namespace lowbit {

/// Takes the bytes of declared tensors in their order. The file appears under its name only when commit() succeeds.
class tensor_stream {
 public:
  /// Appends bytes of the current tensor, in pieces if that is easier; when it is complete, the next one begins. Tensors of no bytes
  /// need no call.
  status append(std::span<const std::uint8_t> bytes) {
    if (bytes.empty()) return done{};
    LOWBIT_EXPECTS(next_ < pending_.size() && bytes.size() <= pending_[next_].bytes - filled_);
    if (status s = file_.append(bytes); !s) return s;
    filled_ += bytes.size();
    if (filled_ < pending_[next_].bytes) return done{};
    ++next_;
    filled_ = 0;
    skip_empty();
    return file_.pad_to(alignment_);
  }
  /// Finishes the file. Expects that every declared tensor was appended.
  status commit() {
    LOWBIT_EXPECTS(complete());
    return file_.commit();
  }
  /// The file, whole but under its temporary name, for file_writer::commit_all. Expects that every declared tensor was appended.
  result<file_writer> finish() && {
    LOWBIT_EXPECTS(complete());
    if (status s = file_.finish(); !s) return std::move(s).error();
    return std::move(file_);
  }
  /// Whether every declared tensor was appended.
  [[nodiscard]] bool complete() const noexcept { return next_ == pending_.size(); }
  /// The tensors' names in the order in which their data are to come.
  [[nodiscard]] std::vector<std::string> order() const {
    std::vector<std::string> names;
    for (const auto& p : pending_) names.push_back(p.name);
    return names;
  }
  /// Bytes of the file so far.
  [[nodiscard]] std::size_t written() const noexcept { return file_.written(); }

 protected:
  struct tensor_bytes {
    std::string name;
    std::size_t bytes;
  };
  /// Writes `header`, padded to `alignment` as every tensor is.
  static result<tensor_stream> begin(const std::filesystem::path& target, std::string_view header, std::vector<tensor_bytes> tensors,
                                     std::size_t alignment) {
    auto file = file_writer::create(target);
    if (!file) return std::move(file).error();
    tensor_stream s(*std::move(file), std::move(tensors), alignment);
    if (status w = s.file_.append(header); !w) return std::move(w).error();
    if (status w = s.file_.pad_to(alignment); !w) return std::move(w).error();
    s.skip_empty();
    return s;
  }

 private:
  tensor_stream(file_writer file, std::vector<tensor_bytes> pending, std::size_t alignment)
      : file_(std::move(file)), pending_(std::move(pending)), alignment_(alignment) {}
  void skip_empty() noexcept {
    while (next_ < pending_.size() && pending_[next_].bytes == 0) ++next_;
  }

  file_writer file_;
  std::vector<tensor_bytes> pending_;
  std::size_t next_ = 0, filled_ = 0, alignment_;
};

}  // namespace lowbit
