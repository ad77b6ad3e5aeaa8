"""What a call would do, found before it is made: for the approver, and to compare at the use of a grant."""
