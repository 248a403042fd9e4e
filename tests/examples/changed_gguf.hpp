// GGUF files with something in them that no writer of ours would put there.
#pragma once

#include <lowbit/io/gguf_writer.hpp>

#include <doctest/doctest.h>

#include <functional>
#include <string>

/// Writes the GGUF file `from` again as `to`, with other metadata.
inline void change_metadata(const std::string& from, const std::string& to, const std::function<void(lowbit::gguf_metadata&)>& change) {
  const auto model = lowbit::gguf_model::open(from);
  REQUIRE(model.ok());
  lowbit::gguf_metadata metadata = model->metadata();
  change(metadata);
  auto writer = lowbit::gguf_writer::create(to, metadata, {model->tensors().begin(), model->tensors().end()});
  REQUIRE(writer.ok());
  for (const auto& t : model->tensors()) {
    const auto part = model->map(t);
    REQUIRE(part.ok());
    REQUIRE(writer->append(part->bytes()).ok());
  }
  REQUIRE(writer->commit().ok());
}
