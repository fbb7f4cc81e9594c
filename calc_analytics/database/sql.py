"""SQL text that statements are made of: quoted names and values, and the sum of two JSON objects."""


def quote_identifier(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str) -> str:
    """The text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def sum_json(left: str, right: str) -> str:
    """SQL: the sums, key by key, of two JSON objects of numbers; either may be null or lack keys."""
    return f"""(
        select coalesce(jsonb_object_agg(key, value), '{{}}')
        from (
            select key, sum(cast(value as numeric)) as value
            from (select * from jsonb_each_text({left}) union all select * from jsonb_each_text({right})) both_
            group by key
        ) summed)"""
