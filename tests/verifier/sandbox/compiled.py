"""Programs in C++, and sources that attack the compiler; see corpus.py."""

# ruff: noqa: E501 - a small program is read most easily on its line

from corpus import Case, bad, right

_HEAD = "#include <cstdio>\n#include <cstdlib>\n#include <unistd.h>\n#include <fcntl.h>\n#include <sys/mman.h>\n#include <sys/syscall.h>\n"


def cpp_right(name: str, source: str, prints: str, **rest) -> Case:
    return right("cpp-" + name, source, prints, language="cpp", **rest)


def cpp_bad(name: str, source: str, *ends: str, **rest) -> Case:
    return bad("cpp-" + name, source, *ends, language="cpp", **rest)


def cpp_held(name: str, attack: str) -> Case:
    """An expression that must be negative."""
    source = f'{_HEAD}int main() {{ long r = {attack}; puts(r < 0 ? "held" : "ESCAPED"); }}'
    return cpp_right(name, source, "held\n")


COMPILED = [
    cpp_right(
        "sum",
        "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }",
        "5",
        stdin=b"2 3",
    ),
    cpp_right(
        "everything",
        "#include <bits/stdc++.h>\nusing namespace std;\nint main() { vector<int> v{3, 1, 2}; ranges::sort(v); cout << v[0] << endl; }",
        "1\n",
    ),
    cpp_right(
        "deep",
        f"{_HEAD}int f(int n) {{ volatile char a[1000]; a[0] = 1; return n ? f(n - 1) + a[0] : 0; }}\n"
        'int main() { printf("%d", f(100000)); }',
        "100000",
    ),
    cpp_right(
        "memory-in-limit",
        f'{_HEAD}int main() {{ char* p = (char*)malloc(200000000); for (long i = 0; i < 200000000; i += 4096) p[i] = 1; puts("4"); }}',
        "4\n",
    ),
    cpp_right(
        "threads",
        '#include <thread>\n#include <cstdio>\nint main() { int x = 0; std::thread t([&] { x = 4; }); t.join(); printf("%d", x); }',
        "4",
    ),
    cpp_right(
        "many-threads",
        '#include <atomic>\n#include <latch>\n#include <thread>\n#include <vector>\n#include <cstdio>\nint main() { std::atomic<int> x = 0; std::latch all(16); std::vector<std::thread> t; for (int i = 0; i < 16; i++) t.emplace_back([&] { all.arrive_and_wait(); x++; }); for (auto& one : t) one.join(); printf("%d", x.load()); }',
        "16",
    ),
    cpp_bad("segfault", "int main() { *(volatile int*)0 = 1; }", "signal"),
    cpp_bad("abort", f"{_HEAD}int main() {{ abort(); }}", "signal"),
    cpp_bad(
        "division", "int main(int c, char**) { volatile int z = c - 1; return 100 / z; }", "signal"
    ),
    cpp_bad("loop", "int main() { for (volatile int i = 0;; i = i + 1); }", "timeout"),
    cpp_bad(
        "heap",
        f"{_HEAD}int main() {{ for (;;) {{ volatile char* p = (char*)malloc(1 << 20); if (!p) return 1; for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1; }} }}",
        "memory",
        "wrong",
        "signal",
    ),
    cpp_bad(
        "stack",
        "int f(int n) { volatile char a[1000]; a[0] = n; return f(n + 1) + a[0]; }\nint main() { return f(0); }",
        "signal",
        "memory",
    ),
    cpp_held("shared-memory", "(long)mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0)"),
    cpp_held("shared-zeros", '(long)mmap(0, 4096, 1, MAP_SHARED, open("/dev/zero", 0), 0)'),
    cpp_bad(
        "bomb", f"{_HEAD}int main() {{ for (;;) fork(); }}", "memory", "timeout", "wrong", "signal"
    ),
    cpp_bad(
        "flood",
        f'{_HEAD}int main() {{ for (;;) puts("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"); }}',
        "output",
    ),
    cpp_bad("return", "int main() { return 7; }", "wrong"),
    cpp_held("socket", "syscall(SYS_socket, 2, 1, 0)"),
    cpp_held("namespace", "syscall(SYS_unshare, 0x10000000)"),
    cpp_held("traces", "syscall(SYS_ptrace, 0, 0, 0, 0)"),
    cpp_held("other-abi", "syscall(0x40000000 | 41, 2, 1, 0)"),
    cpp_held("secret", 'fopen("@SECRET@", "r") ? 1 : -1'),
]

COMPILED_X86 = [
    cpp_bad(
        "old-calls",
        f'{_HEAD}int main() {{ long r; asm volatile("int $0x80" : "=a"(r) : "a"(359), "b"(2), "c"(1), "d"(0)); puts("ESCAPED"); }}',
        "signal",
    ),
]

COMPILING = [
    cpp_bad("syntax", "int main( {", "compile"),
    cpp_bad(
        "templates",
        "template <int N, int M> struct A { static const int v = A<N - 1, M>::v + A<N - 1, M + 1>::v; };\n"
        "template <int M> struct A<0, M> { static const int v = M; };\nint main() { return A<800, 0>::v; }",
        "compile",
    ),
    cpp_bad(
        "constant-loop",
        "constexpr int f() { int s = 0; for (long i = 0; i < 30000000; i++) s ^= i; return s; }\n"
        "constexpr int x = f(); int main() { return x; }",
        "compile",
    ),
    cpp_bad(
        "preprocessor",
        "#define A(x) x x x x x x x x x x\n#define B(x) A(A(A(A(x))))\nint main() { int a = 0; B(B(a++;)) }",
        "compile",
    ),
    cpp_bad("includes-itself", "#include __FILE__\n#include __FILE__\nint main() {}", "compile"),
    cpp_bad("includes-stdin", '#include "/dev/stdin"\nint main() { no }', "compile"),
    cpp_bad("includes-secret", '#include "@SECRET@"\nint main() {}', "compile"),
    cpp_bad("includes-passwords", '#include "/etc/shadow"\nint main() {}', "compile"),
    cpp_bad("includes-zeros", '#include "/dev/zero"\nint main() {}', "compile"),
    cpp_bad("includes-environment", '#include "/proc/self/environ"\nint main() {}', "compile"),
    cpp_bad("embeds-secret", 'asm(".incbin \\"@SECRET@\\"");\nint main() {}', "compile"),
    cpp_bad("huge-array", "char a[3L << 30] = {1};\nint main() { return a[5]; }", "compile"),
    cpp_bad("huge-fill", 'asm(".fill 3000000000, 1, 7");\nint main() {}', "compile"),
    cpp_bad(
        "odd-loader",
        'const char i[] __attribute__((section(".interp"))) = "/nowhere";\nint main() {}',
        "compile",
        "wrong",
        "signal",
    ),
    cpp_bad("plugin", '#pragma GCC plugin("@SECRET@")\n#error no\nint main() {}', "compile"),
]
