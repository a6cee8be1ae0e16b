"""Examples over all rooms: the steps of a user, measured. Nothing imports from here."""
