"""JSON schemas of whose texts a model of random weights finds an end."""

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_NAMES = st.sampled_from(["name", "a", "id", "e-mail", "größe", 'with "quotes"', "x y", "0"])

_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-999, 999), st.text('ab"\\\n é/', max_size=4)
)

_STRINGS = st.one_of(
    st.integers(0, 6).map(lambda most: {"type": "string", "maxLength": most}),
    st.integers(1, 3).map(lambda least: {"type": "string", "minLength": least, "maxLength": 4}),
    st.sampled_from(["^[a-c]{2,3}$", "^(yes|no)?$", "^\\d+-\\d$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 8}
    ),
    st.sampled_from(["date", "ipv4", "uuid"]).map(lambda of: {"type": "string", "format": of}),
)

_NUMBERS = st.one_of(
    st.builds(
        lambda least, more: {"type": "integer", "minimum": least, "maximum": least + more},
        st.integers(-50, 50),
        st.integers(0, 200),
    ),
    st.integers(1, 40).map(
        lambda of: {"type": "integer", "multipleOf": of, "minimum": 0, "maximum": 999}
    ),
    st.just({"type": "number", "exclusiveMinimum": 0, "maximum": 2}),
)

_LEAVES = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    st.lists(_VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    _VALUES.map(lambda value: {"const": value}),
    _STRINGS,
    _NUMBERS,
)


def _objects(schemas: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.dictionaries(_NAMES, schemas, max_size=3).flatmap(
        lambda properties: st.builds(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": sorted(required),
                "additionalProperties": False,
            },
            st.sets(st.sampled_from(sorted(properties))) if properties else st.just(set()),
        )
    )


def _arrays(schemas: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    lists = st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        schemas,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    tuples = st.lists(schemas, min_size=1, max_size=2).map(
        lambda items: {"type": "array", "prefixItems": items, "items": False}
    )
    return st.one_of(lists, tuples)


SCHEMAS: st.SearchStrategy[Schema] = st.recursive(
    _LEAVES,
    lambda schemas: st.one_of(
        _objects(schemas),
        _arrays(schemas),
        st.lists(schemas, min_size=1, max_size=2).map(lambda any_of: {"anyOf": any_of}),
    ),
    max_leaves=6,
)
