// Growing matrices hold what quantising all rows at once gives, however the rows came.
#include "matrices.hpp"

#include <lowbit/format/registry.hpp>
#include <lowbit/matrix/product.hpp>
#include <lowbit/quantise/by_id.hpp>
#include <lowbit/quantise/growing.hpp>

#include <doctest/doctest.h>

#include <cstring>

using namespace lowbit;
using namespace test;

TEST_CASE("rows appended a few at a time are the rows of the whole, in both layouts") {
  serial_executor serial;
  workspace space;
  const matrix w = normal_matrix(70, 96, 1), x = normal_matrix(3, 96, 2);
  for (const format_spec* s : all_formats::specs) {
    if (!s->is_writable() || s->is_recoded()) continue;
    CAPTURE(std::string(s->name));
    const auto whole = quantise(*find_format(s->name), method::rtn, view(w), serial);
    REQUIRE(whole);
    growing_rows rows(*s, 96, 70);
    growing_panels panels(*s, 96, 70, kernel::best_unit());
    for (const bool again : {false, true}) {
      if (again) rows.truncate(0), panels.clear();
      std::size_t at = 0;
      for (const std::size_t count : {std::size_t{1}, std::size_t{0}, std::size_t{20}, std::size_t{3}, std::size_t{46}}) {
        const auto part = matrix_view<const float>(view(w)).middle_rows(at, count);
        REQUIRE(rows.append(part, serial).ok());
        REQUIRE(panels.append(part, serial).ok());
        at += count;
        const packed_view held = rows.view();
        REQUIRE(held.rows == at);
        CHECK(std::memcmp(held.data, whole->bytes().data(), held.size_bytes()) == 0);
        matrix y(3, static_cast<Eigen::Index>(at)), expected = y;
        for (const precision how : {precision::int8, precision::exact}) {
          multiply(view(x), panels.panels(), view(y), space, how);
          multiply(view(x), panel_matrix::from(whole->view().middle_rows(0, at), serial), view(expected), space, how);
          CHECK(y == expected);
        }
      }
    }
  }
}

TEST_CASE("a value that is not finite is refused by its place, and nothing is appended") {
  serial_executor serial;
  matrix w = normal_matrix(5, 32, 3);
  w(3, 17) = INFINITY;
  growing_rows rows(spec_of<q8_0>, 32, 10);
  growing_panels panels(spec_of<q8_0>, 32, 10, kernel::best_unit());
  for (const status& s : {rows.append(view(w), serial), panels.append(view(w), serial)}) {
    REQUIRE(!s.ok());
    CHECK(s.error().message.find("row 3") != std::string::npos);
    CHECK(s.error().message.find("17") != std::string::npos);
  }
  CHECK(rows.size() == 0);
  CHECK(panels.size() == 0);
}
