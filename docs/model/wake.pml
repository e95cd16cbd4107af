/*
 * wake.pml: sleeping and waking by one futex word {counter, special bit, plain bit}.
 *
 *   sleeper:  1 CAS word: counter + 1, my bit set; remember it as v     waker:  1 commit (the message is there)
 *             2 look at the queue again                                         2 no bit: done.  Else CAS word: counter + 1,
 *             3 futex_wait(word, v, slice)                                        special set: both bits cleared, wake all
 *                                                                                 else plain bit kept, wake one;
 *                                                                               3 woke nobody: CAS that word: plain bit cleared
 *                                                                                 woke one: special bit set by now: as above, wake all
 *
 * Plain sleepers take any message.  Special ones (filters, Select, FD) take only some, so one of them must not eat the wake of
 * another: all are woken.  The counter is not bounded here: instead of values, "fresh" says whose remembered word is still the word.
 * Compare shm/wait*.go.  Switches M_*: weakened rules, which must fail.
 */
#ifndef NS
#define NS 2                    /* sleepers */
#endif
#ifndef SPECIAL
#define SPECIAL 0               /* bit s: sleeper s is special */
#endif
#ifndef NW
#define NW 2                    /* wakers */
#endif
#ifndef NM
#define NM 1                    /* messages of each */
#endif
#ifndef PICKY
#define PICKY 0                 /* bit w: messages of waker w are of the sort that special sleepers take */
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#define NP (NS+NW)
#define PLAINBIT 1
#define SPECBIT 2
#define MYBIT (((SPECIAL>>me)&1) -> SPECBIT : PLAINBIT)
byte qs, qo;                    /* messages that special ones take; others */
byte word;                      /* the two bits */
byte fresh;                     /* bit p: process p remembers the present word */
byte wq;                        /* the kernel's queue: bit s: sleeper s is asleep */
byte dead, ndead;
#define LIVE (!((dead>>(me))&1))
#define MATCH (qs>0 || (qo>0 && !((SPECIAL>>me)&1)))
inline take() { if :: qo>0 && !((SPECIAL>>me)&1) -> qo-- :: qs>0 -> qs-- fi }

/* The kernel wakes ordinary tasks in the order of arrival, but those of real-time priority first: by default in any order. */
#ifdef FIFO
byte order;
#define ENQUEUE if :: order==0 -> order=me+1 :: order>0 && order<4 -> order=order|((me+1)<<2) :: else -> order=order|((me+1)<<4) fi;
#define CLEARORDER order=0
#else
#define ENQUEUE
#define CLEARORDER skip
#endif

proctype Sleeper(byte me) {
LOOK: atomic { LIVE; if :: MATCH -> take(); goto LOOK :: else fi }
#ifdef M_LOOKFIRST
     atomic { LIVE; word=word|MYBIT; fresh=1<<me }
#else
#ifdef M_QUIETARRIVAL
     atomic { LIVE; if :: (word&MYBIT)==0 -> word=word|MYBIT; fresh=1<<me :: else -> fresh=fresh|(1<<me) fi }
#else
     atomic { LIVE; word=word|MYBIT; fresh=1<<me }
#endif
     atomic { LIVE; if :: MATCH -> take(); goto LOOK :: else fi }
#endif
     atomic { LIVE; if :: (fresh>>me)&1 -> wq=wq|(1<<me); ENQUEUE fresh=fresh&(255-(1<<me)) :: else -> goto LOOK fi }
#ifdef SLICES
     /* the slice ends at some time; what matters is only that it does while a message is there */
     atomic { LIVE && (!((wq>>me)&1) || MATCH) -> wq=wq&(255-(1<<me)); goto LOOK }
#else
     atomic { LIVE && !((wq>>me)&1) -> goto LOOK }
#endif
}

proctype Waker(byte me; byte sort) {
  byte n;
  do
  :: n==NM -> break
  :: else ->
#ifdef M_WORDFIRST
     byte saw;
     atomic { LIVE; saw=word }
     atomic { LIVE; if :: sort -> qs++ :: else -> qo++ fi }
     atomic { LIVE; if :: saw==0 -> goto DONE :: else fi;
#else
     atomic { LIVE; if :: sort -> qs++ :: else -> qo++ fi }
     atomic { LIVE; if :: word==0 -> goto DONE :: else fi;
#endif
#ifndef M_SPECIALONE
       if :: word&SPECBIT -> word=0; fresh=0; goto ALL :: else fi;
#endif
#ifndef M_NOCHANGE
       fresh=0;
#endif
       fresh=fresh|(1<<me) }
     atomic { LIVE; if :: wq==0 -> skip
#ifdef FIFO
                       :: wq!=0 -> wq=wq&(255-(1<<((order&3)-1))); order=order>>2;
#else
                       :: wq!=0 -> if :: wq&1 -> wq=wq&254 :: wq&2 -> wq=wq&253 :: wq&4 -> wq=wq&251 fi;
#endif
#ifndef M_CLEARALWAYS
                          fresh=fresh&(255-(1<<me)); goto AGAIN
#endif
                    fi }
     atomic { LIVE; if :: (fresh>>me)&1 -> word=word&SPECBIT; fresh=0 :: else fi; goto DONE }
AGAIN:
#if !defined(M_NOSECONDLOOK) && !defined(M_SPECIALONE)
     /* a special sleeper that came between our CAS and our wake may have eaten the wake of a plain one */
     atomic { LIVE; if :: word&SPECBIT -> word=0; fresh=0 :: else -> goto DONE fi }
#else
     goto DONE;
#endif
ALL: atomic { LIVE; wq=0; CLEARORDER }
DONE: atomic { LIVE; n++ }
  od
}
#if DEATHS>0
proctype Killer() {
  byte v;
  do :: ndead<DEATHS -> atomic { ndead++; if :: v=0 :: v=1 :: v=NS :: v=NS+1 fi; dead=dead|(1<<v); if :: v<NS -> wq=wq&(255-(1<<v)) :: else fi; fresh=fresh&(255-(1<<v)); v=0 }   /* the kernel takes a dead sleeper off its queue */
     :: break
  od }
#endif
/* When nothing moves: no live sleeper sleeps while a message for it is there. */
proctype Final() {
  byte me;
  timeout ->
  d_step { do :: me==NS -> break :: else -> assert(((dead>>me)&1) || !MATCH); me++ od }
}
init { byte i; atomic {
  do :: i<NS -> run Sleeper(i); i++ :: else -> break od;
  do :: i<NP -> run Waker(i,(PICKY>>(i-NS))&1); i++ :: else -> break od;
#if DEATHS>0
  run Killer();
#endif
  run Final() } }
