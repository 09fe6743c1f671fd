"""Runs inside a box: a program that reads standard input, as if it had been called by name."""

if __name__ == "__main__":
    for name in ("preamble.py", "program.py"):
        with open(name, "rb") as file:
            exec(compile(file.read(), name, "exec", dont_inherit=True), globals())
