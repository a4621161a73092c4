"""How disputes ended, as the journal has it: nothing but tests asks for that."""


async def dispute_outcomes(state):
    """How the newest disputes that have ended did, by number."""

    def read(database):
        rows = database.execute("SELECT number, outcome FROM disputes")
        return {row["number"]: row["outcome"] for row in rows if row["outcome"] is not None}

    return await state.transact(read)
