"""Inside a sandbox of its own: runs the data set's test code against a program in another one.

Runs as `python tester.py` beside plain.py and tests.json. The names of the program that the tests
use are stand-ins, whose calls cross to the program's process (serve.py) and bring plain data back.
An object that is no data comes back as a handle: it can be used, but equals nothing but itself, is
neither true nor false and holds only its items, so an assertion is decided by plain data alone.

Each report is a line on stdout that starts with a word which only this process and the judge know.
"""

import builtins
import json
import sys
import time

import plain


class ProgramGone(BaseException):
    """The program's process has ended, or talks nonsense. Not for the tests to catch."""


class Unsendable(BaseException):
    """The tests hand over something that only exists here."""


class Program:
    """The other side of the link."""

    def __init__(self):
        self.link = plain.Link(3, 4)
        self.handles = {}
        self.calls = 0
        self.is_gone = False
        self._asked = 0
        if (said := self._receive(1))[0] != "loaded":
            raise ProgramGone(f"the program does not load: {said[1:]}")

    def ask(self, operation, *given):
        """What the program's process says. Raises what was raised there, if that is built in."""
        self._asked += 1
        try:
            request = plain.encode([operation, *given], _number_of)
            self.link.send([self._asked, request])
        except plain.Refused as refusal:
            raise ValueError(f"what the program is given is {refusal}") from None
        except OSError:
            self._give_up("the program has ended")
        number, kind, *rest = self._receive(2)
        if number != self._asked:
            self._give_up("the program answers another question")
        if kind == "value" and len(rest) == 2:
            return self._value(rest, given)
        if kind == "stopped" and operation == "next":
            raise StopIteration
        if kind == "stopped":
            # Else a call inside of map() would end the loop that asserts, and so all its asserts.
            raise RuntimeError("the program raised StopIteration")
        if kind == "raised" and len(rest) == 2:
            raise _exception(*rest)
        self._give_up("the program answers nonsense")

    def _value(self, rest, given):
        try:
            value = plain.decode(rest[0], self._handle)
            for place, changed in rest[1]:
                _write_back(given[place], plain.decode(changed, self._handle))
        except (plain.Refused, ValueError, TypeError, IndexError):
            self._give_up("the program answers nonsense")
        return value

    def _receive(self, least):
        """What came, as a list of at least so many parts."""
        if self.is_gone:
            raise ProgramGone
        try:
            message = self.link.receive()
        except (EOFError, OSError, plain.Refused) as failure:
            self._give_up(f"the program has ended ({type(failure).__name__})")
        if not isinstance(message, list):
            self._give_up("the program answers nonsense")
        return [*message, *[None] * (least - len(message))]

    def _give_up(self, why):
        self.is_gone = True
        raise ProgramGone(why)

    def _handle(self, number):
        if number not in self.handles:
            self.handles[number] = Handle(self, number)
        return self.handles[number]


class Handle:
    """Stands for an object in the program's process."""

    def __init__(self, program, number):
        object.__setattr__(self, "_stands_for", (program, number))

    def __call__(self, *arguments, **named):
        program, _ = _parts(self)
        program.calls += 1
        return program.ask("call", self, list(arguments), named)

    def __getattr__(self, name):
        return _ask(self, "get", name)

    def __setattr__(self, name, value):
        _ask(self, "set", name, value)

    def __delattr__(self, name):
        _ask(self, "delete", name)

    def __getitem__(self, key):
        return _ask(self, "item", key)

    def __setitem__(self, key, value):
        _ask(self, "set item", key, value)

    def __delitem__(self, key):
        _ask(self, "delete item", key)

    def __len__(self):
        return _exactly(int, _ask(self, "length"))

    def __contains__(self, value):
        # By its items, not by its own word, which might be yes to everything.
        return any(item is value or item == value for item in self)

    def __iter__(self):
        iterator = _ask(self, "iterate")
        return iterator if isinstance(iterator, Handle) else iter(iterator)

    def __next__(self):
        return _ask(self, "next")

    def __str__(self):
        return _exactly(str, _ask(self, "text"))

    def __repr__(self):
        return _exactly(str, _ask(self, "shown"))

    def __instancecheck__(self, value):
        return _exactly(bool, _ask(self, "is instance", value))

    def __bool__(self):
        raise TypeError("an object of the program is neither true nor false")


def _parts(handle):
    return object.__getattribute__(handle, "_stands_for")


def _ask(handle, operation, *given):
    return _parts(handle)[0].ask(operation, handle, *given)


def _number_of(value):
    if type(value) is Handle:
        return _parts(value)[1]
    raise Unsendable(f"the program cannot be given a {type(value).__name__}")


def _exactly(kind, value):
    if type(value) is not kind:
        raise TypeError(f"an object of the program gives a {type(value).__name__} here")
    return value


def _exception(name, message):
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind is StopIteration:
        return RuntimeError(f"{name}: {message}")
    try:
        return kind(message)
    except TypeError:  # UnicodeDecodeError and its like want more
        return RuntimeError(f"{name}: {message}")


def _write_back(old, new):
    """Make an argument what the program has made of it, keeping it the same object."""
    if type(old) is not type(new):
        return
    if isinstance(old, list):
        for mine, theirs in zip(old, new, strict=False):
            _write_back(mine, theirs)
        old[:] = [_kept(mine, theirs) for mine, theirs in zip(old, new, strict=False)] + new[
            len(old) :
        ]
    elif isinstance(old, dict):
        for key in old.keys() & new.keys():
            _write_back(old[key], new[key])
            new[key] = _kept(old[key], new[key])
        old.clear()
        old.update(new)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray):
        old[:] = new


def _kept(mine, theirs):
    """The object that is here already, if it can have been brought up to date."""
    is_same = type(mine) is type(theirs) and isinstance(mine, list | dict | set | bytearray)
    return mine if is_same else theirs


def main():
    with open("tests.json", encoding="utf-8") as file:
        tests = json.load(file)

    def report(**fields):
        sys.stdout.write(f"\n{tests['word']} {json.dumps(fields)}\n")
        sys.stdout.flush()

    program = None
    began = time.monotonic()
    number = -1
    try:
        space = {"__name__": "tests"}
        steps = [compile(step, "tests", "exec") for step in tests["steps"]]
        setup = compile(tests["setup"], "tests", "exec")
        exec(compile(tests["before"], "tests", "exec"), space)
        program = Program()
        for name in tests["names"]:
            try:
                space[name] = program.ask("name", name)
            except NameError:
                space.pop(name, None)
            # A built-in type is itself here, where its calls are not seen.
            program.calls += isinstance(space.get(name), type)
        exec(setup, space)
        for number, step in enumerate(steps):
            report(step=number, at=time.monotonic() - began)
            try:
                exec(step, space)
            except Exception as failure:
                report(step=number, failed=f"{type(failure).__name__}: {failure}"[:500])
                if tests["stops"]:
                    break
            else:
                if program.is_gone:
                    raise ProgramGone
                report(step=number, passed=True)
        report(calls=program.calls)
    except ProgramGone as failure:
        report(gone=str(failure)[:500], at=time.monotonic() - began)
    except Unsendable as failure:
        report(broken=str(failure)[:500])
    except BaseException as failure:
        kind = "broken" if program is None else "failed"
        report(**{kind: f"{type(failure).__name__}: {failure}"[:500]})


if __name__ == "__main__":
    main()
