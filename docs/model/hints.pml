/*
 * hints.pml: finding a free slot by hints that may be lost, doubled or lies.
 *
 * The state word is the truth; a bitmap says where to look first.  A producer swaps out the word of hints and keeps it; without hints
 * it takes fresh slots from beyond the high-water mark; with none left it scans all states; only then is there none.  There are
 * more slots than messages (N >= MAX + producers), so a slot is always there for who looks.  Compare shm/slots.go.
 */
#ifndef N
#define N 4
#endif
#ifndef NP
#define NP 2                    /* producers */
#endif
#ifndef MSGS
#define MSGS 2                  /* sends of each */
#endif
#ifndef MAX
#define MAX 2                   /* capacity */
#endif
#ifndef FRESH
#define FRESH 1                 /* fresh slots taken at once */
#endif
#ifndef LOST
#define LOST 2                  /* hints that get lost (with those who die, or in races) */
#endif
#ifndef LIES
#define LIES 2                  /* hints that are doubled or wrong */
#endif
#define FREE 0
#define RES(p) ((p)+1)
#define RDY 8
#define TKN 9
byte st[N];
byte hint;                      /* bit s: slot s may be free */
byte high;                      /* slots below it have pages and may be touched */
byte sent, got, fin, lost, lies;
hidden byte x;
#define LOWEST(c) ((c)&1 -> 0 : ((c)&2 -> 1 : ((c)&4 -> 2 : 3)))

proctype Producer(byte me) {
  byte c, i, n, h;              /* cached hints, slot, sends done, high as read */
NEXT: if :: n==MSGS -> goto END :: else fi;
SEEK: atomic { if :: c!=0 -> goto TRY :: else -> h=high fi }
     atomic { c=hint; hint=0;
#ifndef M_LIES
       c=c&((1<<h)-1);          /* a hint for a slot that nobody used yet is a lie */
#endif
       if :: c!=0 -> h=0; goto TRY :: else fi }
     atomic { if :: h<N && high==h -> high=(h+FRESH<N -> h+FRESH : N); c=((1<<high)-1)&~((1<<h)-1); h=0; goto TRY
                 :: h<N && high!=h -> goto SEEK
                 :: else -> h=0; i=0 fi }
#ifdef M_NOSCAN
     atomic { hint!=0 -> goto SEEK };
#endif
SCAN: atomic { if :: i==N -> i=0; goto NONE :: i<N && st[i]==FREE -> c=c|(1<<i); i++; goto SCAN :: else -> i++; goto SCAN fi }
NONE: atomic { if :: c!=0 -> goto TRY :: else fi }
     /* none free at the moments of the scan: it is like full; sleep until somebody frees one */
     atomic { st[0]==FREE || st[1]==FREE || st[2]==FREE || st[N-1]==FREE -> goto SEEK };
TRY: atomic { i=LOWEST(c); c=c&(255-(1<<i)); assert(i<high) }
     atomic { if :: st[i]==FREE -> st[i]=RES(me) :: else -> i=0; goto SEEK fi }
     atomic { sent-got<MAX -> sent++; assert(st[i]==RES(me)); st[i]=RDY; i=0; n++; goto NEXT }
END: fin++
}
proctype Consumer() {
  byte i;
  do
  :: got==MSGS*NP -> break
  :: atomic { st[0]==RDY -> i=0; st[0]=TKN; got++ }; goto GIVE
  :: atomic { st[1]==RDY -> i=1; st[1]=TKN; got++ }; goto GIVE
  :: atomic { st[2]==RDY -> i=2; st[2]=TKN; got++ }; goto GIVE
  :: atomic { st[N-1]==RDY -> i=N-1; st[N-1]=TKN; got++ }; goto GIVE
  :: false ->
GIVE: atomic { assert(st[i]==TKN); st[i]=FREE }
     atomic { if :: hint=hint|(1<<i) :: lost<LOST -> lost++ fi; i=0 }
  od;
  fin++
}
proctype Noise() {
  do
  :: atomic { lies<LIES -> lies++; if :: hint=hint|1 :: hint=hint|2 :: hint=hint|4 :: hint=hint|(1<<(N-1)) fi }
  :: atomic { lost<LOST -> lost++; hint=0 }
  :: break
  od }
proctype Final() { timeout -> assert(fin==NP+1) }
init { atomic { x=0; do :: x<NP -> run Producer(x); x++ :: else -> break od; x=0; run Consumer(); run Noise(); run Final() } }
