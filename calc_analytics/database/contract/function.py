"""What a function of the contract is: one SELECT of language SQL, which PostgreSQL merges into the caller's query."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """A function of the contract: parameters with their types and defaults, columns with their types, and its query.

    In the query and in the columns' types, [names] in brackets stand for tables and functions with their schemas. In
    the query, :names stand for parameters, which are passed by number: a column of such a name in a table is not
    mistaken for one.
    """

    name: str
    parameters: Mapping[str, str]
    returns: Mapping[str, str] | str
    query: str
    comment: str
    rows: int | None = None

    @property
    def types(self) -> str:
        """The types of the parameters, which identify the function: 'bigint, integer'."""
        return ", ".join(declared.split(" default ")[0] for declared in self.parameters.values())

    def create(self, names: Mapping[str, str]) -> str:
        """The statement that creates or replaces it; `names` says what stands for each name in brackets."""
        parameters = ", ".join(f"{name} {declared}" for name, declared in self.parameters.items())
        returns = self.returns if isinstance(self.returns, str) else _table(self.returns)
        rows = "" if isinstance(self.returns, str) else f" rows {self.rows or 100}"
        return f"""
            create or replace function {names[self.name]}({parameters}) returns {_filled(returns, names)}
            language sql stable parallel safe{rows} as $contract${self._body(names)}$contract$
        """

    def _body(self, names: Mapping[str, str]) -> str:
        numbers = {name: f"${number}" for number, name in enumerate(self.parameters, 1)}
        return re.sub(r":(\w+)", lambda found: numbers[found[1]], _filled(self.query, names))


def _table(columns: Mapping[str, str]) -> str:
    return f"table ({', '.join(f'{name} {type_}' for name, type_ in columns.items())})"


def _filled(sql: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\[(\w+)\]", lambda found: names[found[1]], sql)


def both(
    name: str,
    parameters: Mapping[str, str],
    returns: Mapping[str, str],
    query: str,
    comment: str,
    rows: int = 100,
) -> Iterator[Function]:
    """The function of one publisher, with a first parameter `publisher`, and that of the platform.

    In the query, [of] stands for the condition on publisher_id, and [_days](…) calls the same form of `days`.
    """
    for prefix, of, own, argument, whose in (
        ("publisher", "publisher_id = :publisher", {"publisher": "bigint"}, ":publisher, ", "one publisher"),
        ("platform", "true", {}, "", "all publishers"),
    ):
        filled = re.sub(r"\[_(\w+)\]\(", rf"[{prefix}_\1]({argument}", query).replace("[of]", of)
        about = comment.replace("[whose]", whose)
        yield Function(f"{prefix}_{name}", {**own, **parameters}, returns, filled, about, rows)
