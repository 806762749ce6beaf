// Namespaces, a template, a virtual call. `shop CPU_MS`

#include "work.h"

namespace shop {
namespace tax {

struct Rule {
    virtual ~Rule() = default;
    virtual uint64_t apply(uint64_t x) const = 0;
};

template <typename T, int N> struct Flat final : Rule {
    KEPT uint64_t apply(uint64_t x) const override {
        T y = static_cast<T>(x) + N;
        SPIN(y, ROUNDS_OF_LEAF);
        return y;
    }
};

} // namespace tax

template <typename T> KEPT uint64_t total(const tax::Rule *rule, T x) {
    uint64_t y = rule->apply(x);
    BARRIER();
    return y ^ x;
}

KEPT uint64_t checkout(const tax::Rule *rule, uint64_t x) {
    uint64_t y = total<unsigned long>(rule, x);
    BARRIER();
    return y ^ x;
}

} // namespace shop

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    shop::tax::Rule *rule = new shop::tax::Flat<unsigned long, 7>;
    while (cpu_ms() < enough)
        sink = shop::checkout(rule, sink);
    delete rule;
    return 0;
}
