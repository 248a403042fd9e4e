// Whether this is a run under AddressSanitizer, which takes memory and addresses of its own.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool instrumented = true;
#elif defined(__has_feature)
inline constexpr bool instrumented = __has_feature(address_sanitizer);
#else
inline constexpr bool instrumented = false;
#endif
